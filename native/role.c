/* The role of a batch whose consumers move it: a lock that knows its holder, and the step that is as
   most steps are.

   PullPump in _pumps/pull.py says what the role is. The quick way below does what PullPump.wait does
   where nothing but a step is to be made, and leaves everything else to that: the first step, cancels,
   a bound, a second thread; it calls the pump for the last step and for errors. */

#include "native.h"
#include "pythread.h"

struct Role {
    PyObject_HEAD
    PyThread_type_lock lock;
    unsigned long holder;  /* the thread that has the role; 0: none, or one that is about to say so */
    int taken;             /* whether the lock is */
    char in_step;          /* a step was begun, and neither handed out nor failed */
    unsigned int steps;    /* of the quick way */
    Core *core;
    PyObject *buffers, *live_buffers, *departures;
    PyObject *source;      /* NULL: the quick way is closed */
    PyObject *iterator;    /* that of the source, if it is a generator, or is sent nothing; or NULL */
    PyObject *context;     /* what the source runs in */
};

/* So many steps in a row may run no code of Python's, where a signal or another thread comes in. */
enum { STEPS_WITHOUT_PYTHON = 64 };

static int is_empty(PyObject *departures)
{
    return PyObject_Size(departures) == 0; /* a deque: runs no code, and cannot fail */
}

/* Whether a generator may be sent the live slots: in the midst of `yield from` it may be that what
   they would reach has no `send`. */
static int may_be_sent(PyObject *generator)
{
    PyObject *inner = PyObject_GetAttr(generator, names.gi_yieldfrom);
    Py_XDECREF(inner);
    return inner == Py_None;
}

/* The next step of the source, or NULL with its error, or with StopIteration. */
static PyObject *next_step(Role *role, PyObject *live)
{
    PyObject *step = NULL, *source = Py_NewRef(role->source);
    PyObject *iterator = Py_XNewRef(role->iterator), *context = Py_XNewRef(role->context);
    int is_generator = iterator != NULL && PyGen_CheckExact(iterator);
    if (iterator == NULL || (is_generator && !may_be_sent(iterator)))
        step = PyObject_CallMethodOneArg(source, names.advance, live);
    else if (PyContext_Enter(context) == 0) {
        if (!is_generator)
            step = Py_TYPE(iterator)->tp_iternext(iterator);
        else if (PyIter_Send(iterator, live, &step) == PYGEN_RETURN)
            Py_CLEAR(step);
        if (step == NULL && !PyErr_Occurred())
            PyErr_SetNone(PyExc_StopIteration);
        leave_context(context, &step);
    }
    Py_XDECREF(context);
    Py_XDECREF(iterator);
    Py_DECREF(source);
    return step;
}

/* Make a step, with the role. */
static int make_step(Role *role, PyObject *pump)
{
    PyObject *live = core_live(role->core);
    role->in_step = 1;
    PyObject *step = live == NULL ? NULL : next_step(role, live);
    int over = step == NULL && live != NULL && PyErr_ExceptionMatches(PyExc_StopIteration);
    int failed = step == NULL ||
                 core_take(role->core, step, role->buffers, role->live_buffers, NULL) < 0;
    /* To drop them may run code: before the role is given back, like the rest of the step. */
    PyObject *error = failed ? take_exception() : NULL;
    Py_XDECREF(step);
    Py_XDECREF(live);
    if (over)
        failed = call_method(pump, names.source_over, NULL);
    else if (failed)
        failed = call_method(pump, names.fail, error);
    else
        role->in_step = 0;
    if (error == NULL && !over && PySet_GET_SIZE(role->live_buffers) == 0)
        failed = call_method(pump, names.close_if_idle, NULL);
    Py_XDECREF(error);
    return failed;
}

int role_make_step(Role *role, Buffer *buffer, PyObject *pump)
{
    unsigned long me = PyThread_get_thread_ident();
    if (role->source == NULL || role->holder == me || role->in_step || buffer->refusal != NULL ||
        !is_empty(role->departures) || ++role->steps % STEPS_WITHOUT_PYTHON == 0 ||
        !PyThread_acquire_lock(role->lock, NOWAIT_LOCK))
        return 0;
    role->holder = me;
    role->taken = 1;
    int failed = make_step(role, pump);
    role->holder = 0;
    role->taken = 0;
    PyThread_release_lock(role->lock);
    /* Behind the role: a cancel during the step was queued, and left to this thread. */
    if (!is_empty(role->departures)) {
        PyObject *error = take_exception();
        failed = call_method(pump, names.apply_departures_if_free, NULL) < 0 || failed;
        give_exception(error);
    }
    return failed ? -1 : 1;
}

/* ---- as Python sees it */

static PyObject *method_acquire(Role *role, PyObject *blocking)
{
    int wait = role->lock == NULL ? -1 : PyObject_IsTrue(blocking);
    if (wait < 0)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    PyLockStatus status = PyThread_acquire_lock_timed(role->lock, 0, 0);
    while (wait && status != PY_LOCK_ACQUIRED) {
        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(role->lock, -1, 1);
        Py_END_ALLOW_THREADS
        if (status == PY_LOCK_INTR && PyErr_CheckSignals() < 0)
            return NULL;
    }
    if (status == PY_LOCK_ACQUIRED)
        role->taken = 1;
    return PyBool_FromLong(status == PY_LOCK_ACQUIRED);
}

static PyObject *method_enter(Role *role, PyObject *Py_UNUSED(none))
{
    return method_acquire(role, Py_True);
}

static PyObject *method_release(Role *role, PyObject *const *Py_UNUSED(args),
                                Py_ssize_t Py_UNUSED(count))
{
    if (!role->taken) {
        PyErr_SetString(PyExc_RuntimeError, "the role is not taken");
        return NULL;
    }
    role->holder = 0;
    role->taken = 0;
    PyThread_release_lock(role->lock);
    Py_RETURN_NONE;
}

static PyObject *method_locked(Role *role, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(role->taken);
}

static PyObject *method_slow_down(Role *role, PyObject *Py_UNUSED(none))
{
    Py_CLEAR(role->source);
    Py_CLEAR(role->iterator);
    Py_CLEAR(role->context);
    Py_RETURN_NONE;
}

static PyObject *method_quicken(Role *role, PyObject *args)
{
    PyObject *source, *iterator, *context;
    if (!PyArg_ParseTuple(args, "OOO!", &source, &iterator, &PyContext_Type, &context))
        return NULL;
    if (role->lock == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the role was not initialised");
        return NULL;
    }
    Py_XSETREF(role->iterator, PyIter_Check(iterator) ? Py_NewRef(iterator) : NULL);
    Py_XSETREF(role->context, Py_NewRef(context));
    Py_XSETREF(role->source, Py_NewRef(source));
    Py_RETURN_NONE;
}

static PyObject *get_lock(PyObject *role, void *Py_UNUSED(closure))
{
    return Py_NewRef(role);
}

static int role_init(Role *role, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"core", "buffers", "live_buffers", "departures", NULL};
    PyObject *core, *buffers, *live_buffers, *departures;
    if (role->lock != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a role is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!O!O", words, &CoreType, &core,
                                     &PyList_Type, &buffers, &PySet_Type, &live_buffers,
                                     &departures))
        return -1;
    if ((role->lock = PyThread_allocate_lock()) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    role->core = (Core *)Py_NewRef(core);
    role->buffers = Py_NewRef(buffers);
    role->live_buffers = Py_NewRef(live_buffers);
    role->departures = Py_NewRef(departures);
    return 0;
}

static int role_traverse(Role *role, visitproc visit, void *arg)
{
    Py_VISIT(role->core);
    Py_VISIT(role->buffers);
    Py_VISIT(role->live_buffers);
    Py_VISIT(role->departures);
    Py_VISIT(role->source);
    Py_VISIT(role->iterator);
    Py_VISIT(role->context);
    return 0;
}

/* What the quick way needs goes; the rest stays, for a step that is being made. */
static int role_clear(Role *role)
{
    Py_XDECREF(method_slow_down(role, NULL));
    return 0;
}

static void role_dealloc(Role *role)
{
    PyObject_GC_UnTrack(role);
    role_clear(role);
    Py_CLEAR(role->core);
    Py_CLEAR(role->buffers);
    Py_CLEAR(role->live_buffers);
    Py_CLEAR(role->departures);
    if (role->taken)
        PyThread_release_lock(role->lock);
    if (role->lock != NULL)
        PyThread_free_lock(role->lock);
    Py_TYPE(role)->tp_free((PyObject *)role);
}

static PyMethodDef role_methods[] = {
    {"acquire", (PyCFunction)method_acquire, METH_O, NULL},
    {"release", (PyCFunction)(void (*)(void))method_release, METH_FASTCALL, NULL},
    {"locked", (PyCFunction)method_locked, METH_NOARGS, NULL},
    {"__enter__", (PyCFunction)method_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))method_release, METH_FASTCALL, NULL},
    {"quicken", (PyCFunction)method_quicken, METH_VARARGS, NULL},
    {"slow_down", (PyCFunction)method_slow_down, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef role_members[] = {
    {"holder", T_ULONG, offsetof(Role, holder), 0, NULL},
    {"in_step", T_BOOL, offsetof(Role, in_step), 0, NULL},
    {NULL},
};

static PyGetSetDef role_getset[] = {{"lock", get_lock, NULL, NULL, NULL}, {NULL}};

PyTypeObject RoleType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Role",
    .tp_doc = "A lock that knows its holder, and a quick way to make a step while it is held.",
    .tp_basicsize = sizeof(Role),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)role_init,
    .tp_dealloc = (destructor)role_dealloc,
    .tp_traverse = (traverseproc)role_traverse,
    .tp_clear = (inquiry)role_clear,
    .tp_methods = role_methods,
    .tp_members = role_members,
    .tp_getset = role_getset,
};
