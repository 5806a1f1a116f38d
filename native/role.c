/* A step of a batch whose consumers move it: the role, and the step that is as most steps are.

   PullPump in _pumps/pull.py says what the role is. It holds a Pull in place of a lock; the quick
   way below does what PullPump.wait does where nothing but a step is to be done, and returns to
   Python for everything else: the first step, the last, cancels, bounds, errors. */

#include "native.h"
#include "pythread.h"

struct Pull {
    PyObject_HEAD
    PyThread_type_lock role;
    unsigned long holder;    /* the thread that has the role; 0: none */
    int taken;               /* whether the lock is */
    Core *core;
    PyObject *buffers, *live_buffers, *departures;
    PyObject *context;       /* what the source runs in */
    PyObject *iterator;      /* a generator, or what is sent nothing; NULL: see `advance` */
    PyObject *advance;       /* makes a step of any source; NULL: the quick way is closed */
};

static int is_empty(PyObject *departures)
{
    return PyObject_Size(departures) == 0; /* a deque: runs no code, and cannot fail */
}

/* Whether the iterator may be sent the live slots: in the midst of `yield from` it may be that what
   they would reach has no `send`. */
static int may_be_sent(PyObject *iterator)
{
    PyObject *inner = PyObject_GetAttr(iterator, names.gi_yieldfrom);
    int may = inner == Py_None;
    Py_XDECREF(inner);
    return may;
}

/* The next step of the source, or NULL with its error, or with StopIteration. */
static PyObject *advance(Pull *pull, PyObject *live)
{
    PyObject *step = NULL;
    int is_generator = pull->iterator != NULL && PyGen_CheckExact(pull->iterator);
    if (pull->iterator == NULL || (is_generator && !may_be_sent(pull->iterator))) {
        PyObject *function = Py_NewRef(pull->advance);
        step = PyObject_CallOneArg(function, live);
        Py_DECREF(function);
        return step;
    }
    PyObject *context = Py_NewRef(pull->context), *iterator = Py_NewRef(pull->iterator);
    if (PyContext_Enter(context) == 0) {
        if (is_generator) {
            if (PyIter_Send(iterator, live, &step) == PYGEN_RETURN)
                Py_CLEAR(step);
        } else
            step = Py_TYPE(iterator)->tp_iternext(iterator);
        if (step == NULL && !PyErr_Occurred())
            PyErr_SetNone(PyExc_StopIteration);
        PyObject *error = step == NULL ? take_exception() : NULL;
        if (PyContext_Exit(context) < 0)
            Py_CLEAR(step);
        if (error != NULL)
            set_exception(error);
    }
    Py_DECREF(context);
    Py_DECREF(iterator);
    return step;
}

/* Call a method of the pump; with the exception that is set as its argument, if `name` takes one. */
static int call_pump(PyObject *pump, PyObject *name, int with_error)
{
    PyObject *error = with_error ? take_exception() : NULL;
    PyObject *result = with_error ? PyObject_CallMethodOneArg(pump, name, error)
                                  : PyObject_CallMethodNoArgs(pump, name);
    Py_XDECREF(error);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int pull_step(Pull *pull, Buffer *buffer, PyObject *pump)
{
    unsigned long me = PyThread_get_thread_ident();
    if (pull->advance == NULL || pull->holder == me || buffer->refusal != NULL ||
        !is_empty(pull->departures) || !PyThread_acquire_lock(pull->role, NOWAIT_LOCK))
        return 0;
    pull->holder = me;
    pull->taken = 1;
    PyObject *live = core_live(pull->core);
    PyObject *step = live == NULL ? NULL : advance(pull, live);
    int over = step == NULL && live != NULL && PyErr_ExceptionMatches(PyExc_StopIteration);
    int failed = step == NULL ||
                 core_take(pull->core, step, pull->buffers, pull->live_buffers, NULL) < 0;
    Py_XDECREF(step); /* may run code: before the role is given back, like the rest of the step */
    Py_XDECREF(live);
    if (over) {
        PyErr_Clear();
        failed = call_pump(pump, names.source_over, 0) < 0;
    } else if (failed)
        failed = call_pump(pump, names.fail, 1) < 0;
    else if (PySet_GET_SIZE(pull->live_buffers) == 0)
        failed = call_pump(pump, names.close_if_idle, 0) < 0;
    pull->holder = pull->taken = 0;
    PyThread_release_lock(pull->role);
    /* Behind the role: a cancel during the step was queued, and left to this thread. */
    if (!is_empty(pull->departures)) {
        PyObject *error = failed ? take_exception() : NULL;
        failed = call_pump(pump, names.apply_departures_if_free, 0) < 0 || failed;
        if (error != NULL)
            set_exception(error);
    }
    return failed ? -1 : 1;
}

/* ---- as Python sees it: a lock that knows its holder */

static PyObject *method_acquire(Pull *pull, PyObject *blocking)
{
    int wait = PyObject_IsTrue(blocking);
    if (wait < 0)
        return NULL;
    PyLockStatus status = PyThread_acquire_lock_timed(pull->role, 0, 0);
    while (wait && status != PY_LOCK_ACQUIRED) {
        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(pull->role, -1, 1);
        Py_END_ALLOW_THREADS
        if (status == PY_LOCK_INTR && PyErr_CheckSignals() < 0)
            return NULL;
    }
    if (status == PY_LOCK_ACQUIRED)
        pull->taken = 1;
    return PyBool_FromLong(status == PY_LOCK_ACQUIRED);
}

static PyObject *method_release(Pull *pull, PyObject *const *Py_UNUSED(args),
                                Py_ssize_t Py_UNUSED(count))
{
    if (!pull->taken) {
        PyErr_SetString(PyExc_RuntimeError, "the role is not taken");
        return NULL;
    }
    pull->holder = pull->taken = 0;
    PyThread_release_lock(pull->role);
    Py_RETURN_NONE;
}

static PyObject *method_locked(Pull *pull, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(pull->taken);
}

static PyObject *method_enter(Pull *pull, PyObject *Py_UNUSED(none))
{
    return method_acquire(pull, Py_True);
}

/* Let the quick way make steps from now on. The iterator is None where only `advance` can. */
static PyObject *method_quicken(Pull *pull, PyObject *args)
{
    PyObject *advance, *iterator, *context;
    if (!PyArg_ParseTuple(args, "OOO!", &advance, &iterator, &PyContext_Type, &context))
        return NULL;
    Py_XSETREF(pull->iterator, PyIter_Check(iterator) ? Py_NewRef(iterator) : NULL);
    Py_XSETREF(pull->context, Py_NewRef(context));
    Py_XSETREF(pull->advance, Py_NewRef(advance));
    Py_RETURN_NONE;
}

static PyObject *method_slow_down(Pull *pull, PyObject *Py_UNUSED(none))
{
    Py_CLEAR(pull->advance);
    Py_CLEAR(pull->iterator);
    Py_CLEAR(pull->context);
    Py_RETURN_NONE;
}

static int pull_init(Pull *pull, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"core", "buffers", "live_buffers", "departures", NULL};
    PyObject *core, *buffers, *live_buffers, *departures;
    if (pull->role != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a role is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!O!O", words, &CoreType, &core,
                                     &PyList_Type, &buffers, &PySet_Type, &live_buffers,
                                     &departures))
        return -1;
    pull->role = PyThread_allocate_lock();
    if (pull->role == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    pull->core = (Core *)Py_NewRef(core);
    pull->buffers = Py_NewRef(buffers);
    pull->live_buffers = Py_NewRef(live_buffers);
    pull->departures = Py_NewRef(departures);
    return 0;
}

static int pull_traverse(Pull *pull, visitproc visit, void *arg)
{
    Py_VISIT(pull->core);
    Py_VISIT(pull->buffers);
    Py_VISIT(pull->live_buffers);
    Py_VISIT(pull->departures);
    Py_VISIT(pull->context);
    Py_VISIT(pull->iterator);
    Py_VISIT(pull->advance);
    return 0;
}

static int pull_clear(Pull *pull)
{
    Py_CLEAR(pull->advance);
    Py_CLEAR(pull->iterator);
    Py_CLEAR(pull->context);
    return 0;
}

static void pull_dealloc(Pull *pull)
{
    PyObject_GC_UnTrack(pull);
    pull_clear(pull);
    Py_CLEAR(pull->core);
    Py_CLEAR(pull->buffers);
    Py_CLEAR(pull->live_buffers);
    Py_CLEAR(pull->departures);
    if (pull->role != NULL) {
        if (pull->taken)
            PyThread_release_lock(pull->role);
        PyThread_free_lock(pull->role);
    }
    Py_TYPE(pull)->tp_free((PyObject *)pull);
}

static PyMethodDef pull_methods[] = {
    {"acquire", (PyCFunction)method_acquire, METH_O, NULL},
    {"release", (PyCFunction)(void (*)(void))method_release, METH_FASTCALL, NULL},
    {"locked", (PyCFunction)method_locked, METH_NOARGS, NULL},
    {"__enter__", (PyCFunction)method_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))method_release, METH_FASTCALL, NULL},
    {"quicken", (PyCFunction)method_quicken, METH_VARARGS, NULL},
    {"slow_down", (PyCFunction)method_slow_down, METH_NOARGS, NULL},
    {NULL},
};

static PyObject *get_holder(Pull *pull, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(pull->holder);
}

static int set_holder(Pull *pull, PyObject *value, void *Py_UNUSED(closure))
{
    unsigned long holder = value == NULL ? 0 : PyLong_AsUnsignedLong(value);
    if (PyErr_Occurred())
        return -1;
    pull->holder = holder;
    return 0;
}

static PyObject *get_lock(PyObject *pull, void *Py_UNUSED(closure))
{
    return Py_NewRef(pull);
}

static PyGetSetDef pull_getset[] = {
    {"holder", (getter)get_holder, (setter)set_holder, NULL, NULL},
    {"lock", get_lock, NULL, NULL, NULL},
    {NULL},
};

PyTypeObject PullType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Role",
    .tp_doc = "A lock that knows its holder, and a quick way to make a step while it is held.",
    .tp_basicsize = sizeof(Pull),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)pull_init,
    .tp_dealloc = (destructor)pull_dealloc,
    .tp_traverse = (traverseproc)pull_traverse,
    .tp_clear = (inquiry)pull_clear,
    .tp_methods = pull_methods,
    .tp_getset = pull_getset,
};
