/* One consumer's end of a buffer, in an event loop: AsyncStreamReader in _streams/async_stream.py.

   `__anext__` returns a Receive, which does what the coroutine of that name does in Python: it
   yields what its task has to wait for. In asyncio that is the stream's waiter itself, and costs no
   call; anything else (trio, a turn of the loop, a wait that polls) is awaited like any awaitable. */

#include "native.h"

unsigned char outputs_per_turn = 64;

typedef struct {
    Reader base;
    PyObject *lot, *waiting, *waiter, *checkpoint; /* NULL before the first wait: see _attach */
    char polls;
    unsigned char left; /* how many outputs to take before the others in the loop have their turn */
} AsyncReader;

enum State { NEW, WAITS, YIELDS, OVER };

/* One receive. */
typedef struct {
    PyObject_HEAD
    AsyncReader *reader;
    PyObject *inner;  /* what is awaited, as an iterator; NULL: the waiter itself, or nothing */
    enum State state; /* WAITS: for an output. YIELDS: for its next turn. */
} Receive;

static int attach(AsyncReader *reader)
{
    if (reader->waiter != NULL)
        return 0;
    PyObject *result = PyObject_CallMethodNoArgs((PyObject *)reader, names.attach);
    Py_XDECREF(result);
    if (result != NULL && (reader->waiter == NULL || reader->checkpoint == NULL ||
                           reader->waiting == NULL || !PyDict_CheckExact(reader->waiting)))
        PyErr_SetString(PyExc_RuntimeError, "the stream was attached to no event loop");
    return result == NULL || PyErr_Occurred() ? -1 : 0;
}

/* What `await` iterates over. Takes over the reference. */
static PyObject *begin_await(PyObject *awaitable)
{
    if (awaitable == NULL)
        return NULL;
    PyAsyncMethods *methods = Py_TYPE(awaitable)->tp_as_async;
    if (methods == NULL || methods->am_await == NULL)
        return awaitable; /* a generator that is a coroutine by its decorator */
    PyObject *iterator = methods->am_await(awaitable);
    Py_DECREF(awaitable);
    return iterator;
}

/* Leave a wait, whatever has ended it. Keeps the exception that is set. */
static void leave_wait(Receive *receive, enum State state)
{
    AsyncReader *reader = receive->reader;
    PyObject *buffer = (PyObject *)reader->base.buffer;
    reader->base.buffer->awaited = 0;
    if (receive->state == WAITS && reader->waiting != NULL) {
        PyObject *error = PyErr_Occurred() ? take_exception() : NULL;
        if (PyDict_GetItemWithError(reader->waiting, buffer) != NULL &&
            PyDict_DelItem(reader->waiting, buffer) < 0)
            PyErr_WriteUnraisable(buffer);
        if (error != NULL)
            set_exception(error);
    }
    reader->left = outputs_per_turn;
    receive->state = state;
    Py_CLEAR(receive->inner);
}

/* End the receive; it does not keep the stream, which may be dropped here. Keeps the exception. */
static void end(Receive *receive)
{
    AsyncReader *reader = receive->reader;
    receive->state = OVER;
    receive->reader = NULL;
    Py_XDECREF(reader);
}

/* End the receive with the exception that is set. */
static PySendResult fail(Receive *receive)
{
    if (receive->state == WAITS || receive->state == YIELDS)
        leave_wait(receive, OVER);
    end(receive);
    return PYGEN_ERROR;
}

/* A RuntimeError or TypeError, of asyncio and of trio, may say that this is another event loop. */
static PySendResult fail_in_wait(Receive *receive)
{
    PyObject *reader = (PyObject *)receive->reader;
    if (receive->state == WAITS && (PyErr_ExceptionMatches(PyExc_RuntimeError) ||
                                    PyErr_ExceptionMatches(PyExc_TypeError))) {
        PyObject *error = take_exception();
        PyObject *result = PyObject_CallMethodNoArgs(reader, names.check_loop);
        if (result == NULL)
            Py_XDECREF(error);
        else
            set_exception(error);
        Py_XDECREF(result);
    }
    return fail(receive);
}

/* Go on with what is awaited; PYGEN_RETURN: it has ended, and the receive looks at the buffer. */
static PySendResult go_on_waiting(Receive *receive, PyObject *value, PyObject **result)
{
    PySendResult sent = PYGEN_RETURN;
    if (receive->inner != NULL) {
        PyObject *inner = Py_NewRef(receive->inner);
        sent = PyIter_Send(inner, value, result);
        Py_DECREF(inner);
    }
    if (sent == PYGEN_RETURN) {
        if (receive->inner != NULL)
            Py_CLEAR(*result);
        leave_wait(receive, NEW);
    }
    return sent == PYGEN_ERROR ? fail_in_wait(receive) : sent;
}

/* Let the other tasks have their turn, before an output that is there. */
static PySendResult yield_turn(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    if (attach(reader) < 0)
        return fail(receive);
    receive->inner = begin_await(PyObject_CallNoArgs(reader->checkpoint));
    if (receive->inner == NULL)
        return fail(receive);
    receive->state = YIELDS;
    reader->base.buffer->awaited = 1;
    return go_on_waiting(receive, Py_None, result);
}

/* Wait for an output or the end. PYGEN_RETURN: there may be one by now. */
static PySendResult wait_for_output(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    Buffer *buffer = reader->base.buffer;
    if (buffer_made_room(buffer) < 0 || attach(reader) < 0) /* room: the last one was broken off */
        return fail(receive);
    if (PyDict_SetItem(reader->waiting, (PyObject *)buffer, reader->waiter) < 0)
        return fail(receive);
    receive->state = WAITS;
    buffer->awaited = 1;
    if (buffer->count || buffer->end != NULL) { /* what came before the parking wakes no waiter */
        leave_wait(receive, NEW);
        return PYGEN_RETURN;
    }
    if (!reader->polls && Py_IS_TYPE(reader->waiter, &WaiterType)) {
        *result = waiter_await(reader->waiter);
        return PYGEN_NEXT;
    }
    if (reader->polls)
        receive->inner = begin_await(
            PyObject_CallMethodNoArgs((PyObject *)reader, names.wait_and_poll));
    else
        receive->inner = begin_await(Py_NewRef(reader->waiter));
    if (receive->inner == NULL)
        return fail(receive);
    return go_on_waiting(receive, Py_None, result);
}

static PySendResult receive_send(Receive *receive, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (receive->state == OVER) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an already awaited receive");
        return PYGEN_ERROR;
    }
    AsyncReader *reader = receive->reader;
    Buffer *buffer = reader->base.buffer;
    PySendResult sent = PYGEN_RETURN;
    if (receive->state != NEW)
        sent = go_on_waiting(receive, value, result);
    while (sent == PYGEN_RETURN) {
        if (buffer->awaited) {
            reader_refuse_concurrent(&reader->base, "task");
            return fail(receive);
        }
        if (buffer->count && reader->left == 0)
            sent = yield_turn(receive, result);
        else if (buffer->count) {
            *result = buffer_take(buffer);
            reader->left--;
            if (buffer_made_room(buffer) < 0) {
                Py_CLEAR(*result);
                return fail(receive);
            }
            end(receive);
            return PYGEN_RETURN;
        } else if (buffer->end == NULL)
            sent = wait_for_output(receive, result);
        else {
            if (buffer_conclude(buffer) == 0)
                PyErr_SetNone(PyExc_StopAsyncIteration);
            return fail(receive);
        }
    }
    return sent;
}

/* ---- as Python sees a receive: like a coroutine */

static PyObject *finish_send(PySendResult sent, PyObject *result)
{
    if (sent == PYGEN_RETURN) {
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result); /* a tuple stays one */
        if (stop != NULL)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
        Py_CLEAR(result);
    }
    return sent == PYGEN_ERROR ? NULL : result;
}

static PyObject *method_send(Receive *receive, PyObject *value)
{
    PyObject *result;
    PySendResult sent = receive_send(receive, value, &result);
    return finish_send(sent, result);
}

static PyObject *receive_next(Receive *receive)
{
    return method_send(receive, Py_None);
}

static PyObject *method_throw(Receive *receive, PyObject *args)
{
    PyObject *type, *value = NULL, *traceback = NULL, *result = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &traceback))
        return NULL;
    if (receive->state == OVER) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an already awaited receive");
        return NULL;
    }
    PyObject *inner = Py_XNewRef(receive->inner);
    PyObject *throw_ = inner == NULL ? NULL : PyObject_GetAttr(inner, names.throw_);
    if (throw_ != NULL) {
        result = PyObject_Call(throw_, args, NULL);
        Py_DECREF(throw_);
    } else {
        PyErr_Clear();
        if (PyExceptionInstance_Check(type))
            PyErr_SetObject((PyObject *)Py_TYPE(type), type);
        else if (PyExceptionClass_Check(type))
            PyErr_SetObject(type, value == NULL || value == Py_None ? NULL : value);
        else
            PyErr_SetString(PyExc_TypeError, "throw takes an exception");
    }
    Py_XDECREF(inner);
    if (result != NULL)
        return result; /* it waits on */
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        fail_in_wait(receive);
        return NULL;
    }
    PyErr_Clear(); /* what is awaited has ended all the same */
    leave_wait(receive, NEW);
    return method_send(receive, Py_None);
}

static PyObject *method_close(Receive *receive, PyObject *Py_UNUSED(none))
{
    PyObject *inner = Py_XNewRef(receive->inner);
    if (receive->state == WAITS || receive->state == YIELDS)
        leave_wait(receive, OVER);
    end(receive);
    PyObject *close = inner == NULL ? NULL : PyObject_GetAttr(inner, names.close);
    if (close == NULL)
        PyErr_Clear();
    PyObject *result = close == NULL ? Py_NewRef(Py_None) : PyObject_CallNoArgs(close);
    Py_XDECREF(close);
    Py_XDECREF(inner);
    return result;
}

static int receive_traverse(Receive *receive, visitproc visit, void *arg)
{
    Py_VISIT(receive->reader);
    Py_VISIT(receive->inner);
    return 0;
}

static int receive_clear(Receive *receive)
{
    if (receive->reader != NULL && (receive->state == WAITS || receive->state == YIELDS))
        leave_wait(receive, OVER);
    Py_CLEAR(receive->inner);
    end(receive);
    return 0;
}

static void receive_dealloc(Receive *receive)
{
    PyObject_GC_UnTrack(receive);
    receive_clear(receive);
    PyObject_GC_Del(receive);
}

static PyMethodDef receive_methods[] = {
    {"send", (PyCFunction)method_send, METH_O, NULL},
    {"throw", (PyCFunction)method_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)method_close, METH_NOARGS, NULL},
    {NULL},
};

static PyAsyncMethods receive_as_async = {
    .am_await = return_self,
    .am_send = (sendfunc)receive_send,
};

PyTypeObject ReceiveType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Receive",
    .tp_doc = "One receive of an asynchronous stream, to be awaited once.",
    .tp_basicsize = sizeof(Receive),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)receive_dealloc,
    .tp_traverse = (traverseproc)receive_traverse,
    .tp_clear = (inquiry)receive_clear,
    .tp_as_async = &receive_as_async,
    .tp_iter = return_self,
    .tp_iternext = (iternextfunc)receive_next,
    .tp_methods = receive_methods,
};

/* ---- the reader */

static PyObject *reader_anext(AsyncReader *reader)
{
    if (reader->base.buffer == NULL) {
        PyErr_SetString(PyExc_TypeError, "the stream reads no buffer");
        return NULL;
    }
    Receive *receive = PyObject_GC_New(Receive, &ReceiveType);
    if (receive == NULL)
        return NULL;
    receive->reader = (AsyncReader *)Py_NewRef(reader);
    receive->inner = NULL;
    receive->state = NEW;
    PyObject_GC_Track(receive);
    return (PyObject *)receive;
}

static PyObject *method_drain(AsyncReader *reader, PyObject *Py_UNUSED(none))
{
    if (reader->base.buffer->awaited)
        return reader_refuse_concurrent(&reader->base, "task");
    return buffer_take_all(reader->base.buffer);
}

static int async_reader_init(AsyncReader *reader, PyObject *args, PyObject *keywords)
{
    reader->left = outputs_per_turn;
    return reader_init(&reader->base, args, keywords);
}

static int async_reader_traverse(AsyncReader *reader, visitproc visit, void *arg)
{
    Py_VISIT(reader->lot);
    Py_VISIT(reader->waiting);
    Py_VISIT(reader->waiter);
    Py_VISIT(reader->checkpoint);
    return reader_traverse(&reader->base, visit, arg);
}

static int async_reader_clear(AsyncReader *reader)
{
    Py_CLEAR(reader->lot);
    Py_CLEAR(reader->waiting);
    Py_CLEAR(reader->waiter);
    Py_CLEAR(reader->checkpoint);
    return reader_clear(&reader->base);
}

static void async_reader_dealloc(AsyncReader *reader)
{
    PyObject_GC_UnTrack(reader);
    if (reader->base.weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)reader);
    async_reader_clear(reader);
    Py_TYPE(reader)->tp_free((PyObject *)reader);
}

static PyMethodDef async_reader_methods[] = {
    {"drain", (PyCFunction)method_drain, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};

static PyMemberDef async_reader_members[] = {
    {"_buffer", T_OBJECT_EX, offsetof(Reader, buffer), READONLY, NULL},
    {"_upstream", T_OBJECT_EX, offsetof(Reader, upstream), READONLY, NULL},
    {"_lot", T_OBJECT, offsetof(AsyncReader, lot), 0, NULL},
    {"_waiting", T_OBJECT, offsetof(AsyncReader, waiting), 0, NULL},
    {"_waiter", T_OBJECT, offsetof(AsyncReader, waiter), 0, NULL},
    {"_checkpoint", T_OBJECT, offsetof(AsyncReader, checkpoint), 0, NULL},
    {"_polls", T_BOOL, offsetof(AsyncReader, polls), 0, NULL},
    {NULL},
};

static PyAsyncMethods async_reader_as_async = {
    .am_aiter = return_self,
    .am_anext = (unaryfunc)reader_anext,
};

PyTypeObject AsyncReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.AsyncStreamReader",
    .tp_doc = "One consumer's end of a buffer, in an event loop.",
    .tp_basicsize = sizeof(AsyncReader),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)async_reader_init,
    .tp_dealloc = (destructor)async_reader_dealloc,
    .tp_traverse = (traverseproc)async_reader_traverse,
    .tp_clear = (inquiry)async_reader_clear,
    .tp_as_async = &async_reader_as_async,
    .tp_methods = async_reader_methods,
    .tp_members = async_reader_members,
    .tp_weaklistoffset = offsetof(Reader, weakrefs),
};
