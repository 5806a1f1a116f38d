/* What a task of asyncio awaits until it is resumed: AsyncioWaiter in _eventloops/asyncio.py, which
   has the rest of it. asyncio.Task takes it for a future, and awaits it again and again. */

#include "native.h"

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *wakeup, *context; /* the callback of the task that awaits this, and where to call it */
    PyObject *cancelled;        /* the CancelledError that the wait has ended in */
    char blocking;              /* set as it is yielded: asyncio.Task accepts nothing else */
} Waiter;

PyObject *waiter_await(PyObject *waiter)
{
    ((Waiter *)waiter)->blocking = 1;
    return Py_NewRef(waiter);
}

int waiter_is_awaited(PyObject *waiter)
{
    PyObject *wakeup = ((Waiter *)waiter)->wakeup;
    return wakeup != NULL && wakeup != Py_None;
}

/* For a task that awaits it by itself: an iterator over nothing but the waiter. */
static PyObject *begin_await(PyObject *waiter)
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
    Py_XSETREF(waiter->context, Py_NewRef(args[1])); /* first: a waiter with a callback has one */
    Py_XSETREF(waiter->wakeup, Py_NewRef(args[0]));
    Py_RETURN_NONE;
}

static PyObject *method_result(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    PyObject *cancelled = waiter->cancelled;
    if (cancelled == NULL || cancelled == Py_None)
        Py_RETURN_NONE;
    waiter->cancelled = NULL;
    raise_object(cancelled);
    return NULL;
}

/* Resume the task that awaits a waiter, if one does. */
static int resume(Waiter *waiter)
{
    PyObject *wakeup = waiter->wakeup, *result = NULL;
    if (!waiter_is_awaited((PyObject *)waiter))
        return 0;
    waiter->wakeup = NULL; /* before the call, in which the task may await this waiter again */
    PyObject *context = Py_NewRef(waiter->context);
    if (PyContext_Enter(context) == 0) {
        result = PyObject_CallOneArg(wakeup, (PyObject *)waiter);
        leave_context(context, &result);
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
    PyObject *waiters = args[0], *loop = args[1], *waiter;
    for (int n = 0; n < waiters_per_turn && (waiter = PyIter_Next(waiters)) != NULL; n++) {
        if (!PyObject_TypeCheck(waiter, &WaiterType))
            PyErr_SetString(PyExc_TypeError, "resume_all takes waiters");
        else
            resume((Waiter *)waiter);
        Py_DECREF(waiter);
        if (PyErr_Occurred()) /* a KeyboardInterrupt that leaves a task */
            break;
    }
    PyObject *error = take_exception();
    if (PyObject_LengthHint(waiters, 0) > 0) { /* whatever was raised, the others go on */
        PyObject *again = PyObject_GetAttr((PyObject *)&WaiterType, names.resume_all);
        PyObject *result = again == NULL ? NULL
            : PyObject_CallMethodObjArgs(loop, names.call_soon, again, waiters, loop, NULL);
        Py_XDECREF(again);
        Py_XDECREF(result);
    }
    give_exception(error);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static int waiter_init(Waiter *waiter, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"loop", NULL};
    PyObject *loop;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O", words, &loop))
        return -1;
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
    {"resume_all", (PyCFunction)(void (*)(void))method_resume_all, METH_FASTCALL | METH_STATIC,
     NULL},
    {NULL},
};

static PyMemberDef waiter_members[] = {
    {"_loop", T_OBJECT, offsetof(Waiter, loop), READONLY, NULL},
    {"_wakeup", T_OBJECT, offsetof(Waiter, wakeup), 0, NULL},
    {"_context", T_OBJECT, offsetof(Waiter, context), READONLY, NULL},
    {"_cancelled", T_OBJECT, offsetof(Waiter, cancelled), 0, NULL},
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, blocking), 0, NULL},
    {NULL},
};

static PyAsyncMethods waiter_as_async = {.am_await = begin_await};

PyTypeObject WaiterType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.AsyncioWaiter",
    .tp_doc = "What a task awaits until it is resumed, many times, one task at a time.",
    .tp_basicsize = sizeof(Waiter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)waiter_init,
    .tp_dealloc = (destructor)waiter_dealloc,
    .tp_traverse = (traverseproc)waiter_traverse,
    .tp_clear = (inquiry)waiter_clear,
    .tp_as_async = &waiter_as_async,
    .tp_methods = waiter_methods,
    .tp_members = waiter_members,
};
