/* What a task of asyncio awaits until it is resumed: AsyncioWaiter in _eventloops/asyncio.py.

   asyncio.Task takes it for a future, and awaits it again and again: it is made once per stream. */

#include "native.h"

int waiters_per_turn = 64;

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *wakeup, *context; /* the callback of the task that awaits this, and where to call it */
    PyObject *cancelled;        /* the CancelledError that the wait has ended in */
    char blocking;              /* set as it is yielded: asyncio.Task accepts nothing else */
} Waiter;

static PyObject *cancelled_error, *resume_all;

PyObject *waiter_await(PyObject *waiter)
{
    ((Waiter *)waiter)->blocking = 1;
    return Py_NewRef(waiter);
}

static PyObject *method_await(PyObject *waiter)
{
    PyObject *tuple = PyTuple_Pack(1, waiter);
    PyObject *iterator = tuple == NULL ? NULL : PyObject_GetIter(tuple);
    Py_XDECREF(tuple);
    ((Waiter *)waiter)->blocking = 1;
    return iterator;
}

static PyObject *method_add_done_callback(Waiter *waiter, PyObject *const *args, Py_ssize_t count,
                                          PyObject *keywords)
{
    if (count != 1 || keywords == NULL || PyTuple_GET_SIZE(keywords) != 1) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback takes a callback and its context");
        return NULL;
    }
    Py_XSETREF(waiter->wakeup, Py_NewRef(args[0]));
    Py_XSETREF(waiter->context, Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

static PyObject *method_result(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    PyObject *error = waiter->cancelled;
    if (error == NULL)
        Py_RETURN_NONE;
    waiter->cancelled = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
    return NULL;
}

static PyObject *method_cancel(Waiter *waiter, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O", words, &message))
        return NULL;
    if (waiter->wakeup == NULL)
        Py_RETURN_FALSE;
    PyObject *error = message == Py_None ? PyObject_CallNoArgs(cancelled_error)
                                         : PyObject_CallOneArg(cancelled_error, message);
    PyObject *call_soon = error == NULL ? NULL : PyObject_GetAttr(waiter->loop, names.call_soon);
    PyObject *wakeup = waiter->wakeup;
    if (call_soon == NULL || wakeup == NULL) {
        Py_XDECREF(error);
        Py_XDECREF(call_soon);
        return NULL;
    }
    waiter->wakeup = NULL;
    Py_XSETREF(waiter->cancelled, error);
    PyObject *arguments[] = {wakeup, (PyObject *)waiter, waiter->context};
    PyObject *words_given = PyTuple_Pack(1, names.context);
    PyObject *result = words_given == NULL ? NULL
        : PyObject_Vectorcall(call_soon, arguments, 2, words_given);
    Py_XDECREF(words_given);
    Py_DECREF(wakeup);
    Py_DECREF(call_soon);
    if (result == NULL)
        return NULL;
    Py_DECREF(result);
    Py_RETURN_TRUE;
}

/* Resume the task that awaits a waiter, if one does. */
static int resume(Waiter *waiter)
{
    PyObject *wakeup = waiter->wakeup;
    if (wakeup == NULL)
        return 0;
    waiter->wakeup = NULL; /* before the call, in which the task may await this waiter again */
    PyObject *context = Py_NewRef(waiter->context), *result = NULL;
    if (PyContext_Enter(context) == 0) {
        result = PyObject_CallOneArg(wakeup, (PyObject *)waiter);
        PyObject *error = result == NULL ? take_exception() : NULL;
        if (PyContext_Exit(context) < 0)
            Py_CLEAR(result);
        if (error != NULL)
            set_exception(error);
    }
    Py_DECREF(context);
    Py_DECREF(wakeup);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Resume the tasks that await these waiters: a few now, the others in later callbacks. */
static PyObject *method_resume_all(PyObject *Py_UNUSED(self), PyObject *const *args,
                                   Py_ssize_t count)
{
    if (count != 2 || !PyIter_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "resume_all takes an iterator of waiters and their loop");
        return NULL;
    }
    PyObject *waiters = args[0], *loop = args[1], *waiter = NULL, *error = NULL;
    for (int n = 0; n < waiters_per_turn && error == NULL; n++) {
        waiter = PyIter_Next(waiters);
        if (waiter == NULL)
            break;
        if (!Py_IS_TYPE(waiter, &WaiterType)) {
            PyErr_SetString(PyExc_TypeError, "resume_all takes waiters");
            error = take_exception();
        } else if (resume((Waiter *)waiter) < 0)
            error = take_exception(); /* a KeyboardInterrupt that leaves a task: the others go on */
        Py_DECREF(waiter);
    }
    if (error == NULL && PyErr_Occurred())
        return NULL;
    Py_ssize_t left = PyObject_LengthHint(waiters, 1);
    if (left > 0) {
        PyObject *result = PyObject_CallMethodObjArgs(loop, names.call_soon, resume_all, waiters,
                                                      loop, NULL);
        Py_XDECREF(result);
        if (result == NULL && error == NULL)
            return NULL;
    }
    if (error != NULL) {
        set_exception(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *get_blocking(Waiter *waiter, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(waiter->blocking);
}

static int set_blocking(Waiter *waiter, PyObject *value, void *Py_UNUSED(closure))
{
    int blocking = value == NULL ? -1 : PyObject_IsTrue(value);
    if (blocking < 0)
        return -1;
    waiter->blocking = (char)blocking;
    return 0;
}

static int waiter_init(Waiter *waiter, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"loop", NULL};
    PyObject *loop;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O", words, &loop))
        return -1;
    if (cancelled_error == NULL) { /* here, where asyncio runs, and not where the core is imported */
        PyObject *asyncio = PyImport_ImportModule("asyncio");
        if (asyncio == NULL)
            return -1;
        cancelled_error = PyObject_GetAttrString(asyncio, "CancelledError");
        Py_DECREF(asyncio);
        resume_all = PyObject_GetAttr((PyObject *)&WaiterType, names.resume_all);
        if (cancelled_error == NULL || resume_all == NULL)
            return -1;
    }
    Py_XSETREF(waiter->loop, Py_NewRef(loop));
    return 0;
}

static int waiter_traverse(Waiter *waiter, visitproc visit, void *arg)
{
    Py_VISIT(waiter->loop);
    Py_VISIT(waiter->wakeup);
    Py_VISIT(waiter->context);
    Py_VISIT(waiter->cancelled);
    return 0;
}

static int waiter_clear(Waiter *waiter)
{
    Py_CLEAR(waiter->loop);
    Py_CLEAR(waiter->wakeup);
    Py_CLEAR(waiter->context);
    Py_CLEAR(waiter->cancelled);
    return 0;
}

static void waiter_dealloc(Waiter *waiter)
{
    PyObject_GC_UnTrack(waiter);
    waiter_clear(waiter);
    Py_TYPE(waiter)->tp_free((PyObject *)waiter);
}

static PyMethodDef waiter_methods[] = {
    {"add_done_callback", (PyCFunction)(void (*)(void))method_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS, NULL},
    {"result", (PyCFunction)method_result, METH_NOARGS, NULL},
    {"cancel", (PyCFunction)(void (*)(void))method_cancel, METH_VARARGS | METH_KEYWORDS, NULL},
    {"resume_all", (PyCFunction)(void (*)(void))method_resume_all, METH_FASTCALL | METH_STATIC,
     NULL},
    {NULL},
};

static PyMemberDef waiter_members[] = {
    {"_loop", T_OBJECT, offsetof(Waiter, loop), READONLY, NULL},
    {NULL},
};

static PyGetSetDef waiter_getset[] = {
    {"_asyncio_future_blocking", (getter)get_blocking, (setter)set_blocking, NULL, NULL},
    {NULL},
};

static PyAsyncMethods waiter_as_async = {.am_await = method_await};

PyTypeObject WaiterType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.AsyncioWaiter",
    .tp_doc = "What a task awaits until it is resumed, many times, one task at a time.",
    .tp_basicsize = sizeof(Waiter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)waiter_init,
    .tp_dealloc = (destructor)waiter_dealloc,
    .tp_traverse = (traverseproc)waiter_traverse,
    .tp_clear = (inquiry)waiter_clear,
    .tp_as_async = &waiter_as_async,
    .tp_methods = waiter_methods,
    .tp_members = waiter_members,
    .tp_getset = waiter_getset,
};
