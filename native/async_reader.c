/* One consumer's end of a buffer, in an event loop: AsyncStreamReader in _streams/async_stream.py.

   `__anext__` returns a Receive, which does what the coroutine of that name does in Python: it
   yields what its task has to wait for. In asyncio that is the stream's waiter itself, and costs no
   call; anything else (trio, a turn of the loop, a wait that polls) is awaited like any awaitable. */

#include "native.h"

typedef struct {
    Reader base;
    PyObject *lot, *waiting, *waiter, *checkpoint; /* NULL before the first wait: see _attach */
    char polls;
    short left; /* how many outputs to take before the others in the loop have their turn */
} AsyncReader;

/* NEW: not begun, or between two waits. WAITS: for an output. YIELDS: for its next turn. */
enum State { NEW, WAITS, YIELDS, OVER };

/* One receive. */
typedef struct {
    PyObject_HEAD
    AsyncReader *reader; /* NULL when it is over: it does not keep the stream */
    PyObject *inner;     /* what is awaited, as an iterator; NULL: the waiter itself, or nothing */
    enum State state;
    char running;        /* a method is at work, whose calls may come back to this receive */
} Receive;

static int attach(AsyncReader *reader)
{
    if (reader->waiter != NULL)
        return 0;
    if (call_method((PyObject *)reader, names.attach, NULL) < 0)
        return -1;
    if (reader->waiter != NULL && reader->checkpoint != NULL && reader->waiting != NULL &&
        PyDict_CheckExact(reader->waiting))
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the stream was attached to no event loop");
    return -1;
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
static void leave_wait(Receive *receive)
{
    AsyncReader *reader = receive->reader;
    Buffer *buffer = reader == NULL ? NULL : reader->base.buffer;
    if (buffer != NULL && receive->state != NEW && receive->state != OVER) {
        PyObject *error = take_exception();
        buffer->awaited = 0;
        reader->left = (short)outputs_per_turn;
        if (receive->state == WAITS && reader->waiting != NULL &&
            PyDict_GetItemWithError(reader->waiting, (PyObject *)buffer) != NULL &&
            PyDict_DelItem(reader->waiting, (PyObject *)buffer) < 0)
            PyErr_WriteUnraisable((PyObject *)buffer);
        give_exception(error);
    }
    receive->state = NEW;
    Py_CLEAR(receive->inner);
}

/* End the receive, which may drop the stream. Keeps the exception that is set. */
static PySendResult end_receive(Receive *receive, PySendResult result)
{
    leave_wait(receive);
    receive->state = OVER;
    PyObject *error = take_exception();
    Py_CLEAR(receive->reader);
    give_exception(error);
    return result;
}

/* A RuntimeError or TypeError, of asyncio and of trio, may say that this is another event loop. */
static PySendResult fail_in_wait(Receive *receive)
{
    if (receive->state == WAITS && (PyErr_ExceptionMatches(PyExc_RuntimeError) ||
                                    PyErr_ExceptionMatches(PyExc_TypeError))) {
        PyObject *error = take_exception();
        if (call_method((PyObject *)receive->reader, names.check_loop, NULL) < 0)
            Py_DECREF(error); /* it says so */
        else
            give_exception(error);
    }
    return end_receive(receive, PYGEN_ERROR);
}

/* Go on with what is awaited. PYGEN_RETURN: it has ended, and the buffer is to be looked at. */
static PySendResult go_on_waiting(Receive *receive, PyObject *value, PyObject **result)
{
    PySendResult sent = PYGEN_RETURN;
    if (receive->inner != NULL) {
        PyObject *inner = Py_NewRef(receive->inner);
        sent = PyIter_Send(inner, value, result);
        Py_DECREF(inner);
        if (sent == PYGEN_RETURN)
            Py_CLEAR(*result);
    }
    if (sent == PYGEN_RETURN)
        leave_wait(receive);
    return sent == PYGEN_ERROR ? fail_in_wait(receive) : sent;
}

/* Let the other tasks have their turn, before an output that is there. */
static PySendResult yield_turn(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    if (attach(reader) == 0)
        receive->inner = begin_await(PyObject_CallNoArgs(reader->checkpoint));
    if (receive->inner == NULL)
        return end_receive(receive, PYGEN_ERROR);
    receive->state = YIELDS;
    reader->base.buffer->awaited = 1;
    return go_on_waiting(receive, Py_None, result);
}

/* Wait for an output or the end. PYGEN_RETURN: there may be one by now. */
static PySendResult wait_for_output(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    Buffer *buffer = reader->base.buffer;
    if (buffer_made_room(buffer) < 0 || attach(reader) < 0 || /* room: the last was broken off */
        PyDict_SetItem(reader->waiting, (PyObject *)buffer, reader->waiter) < 0)
        return end_receive(receive, PYGEN_ERROR);
    receive->state = WAITS;
    buffer->awaited = 1;
    if (buffer->count || buffer->end != NULL) { /* what came before the parking wakes no waiter */
        leave_wait(receive);
        return PYGEN_RETURN;
    }
    if (!reader->polls && PyObject_TypeCheck(reader->waiter, &WaiterType)) {
        *result = waiter_await(reader->waiter);
        return PYGEN_NEXT;
    }
    receive->inner = begin_await(
        reader->polls ? PyObject_CallMethodNoArgs((PyObject *)reader, names.wait_and_poll)
                      : Py_NewRef(reader->waiter));
    return receive->inner == NULL ? end_receive(receive, PYGEN_ERROR)
                                  : go_on_waiting(receive, Py_None, result);
}

static PySendResult take_output(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    *result = buffer_take(reader->base.buffer);
    reader->left--;
    if (buffer_made_room(reader->base.buffer) < 0)
        Py_CLEAR(*result);
    return end_receive(receive, *result == NULL ? PYGEN_ERROR : PYGEN_RETURN);
}

static PySendResult conclude(Receive *receive)
{
    if (buffer_conclude(receive->reader->base.buffer) == 0)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    return end_receive(receive, PYGEN_ERROR);
}

/* Look at the buffer, and wait, until there is an output or the end. */
static PySendResult go_on(Receive *receive, PyObject **result)
{
    AsyncReader *reader = receive->reader;
    Buffer *buffer = reader->base.buffer;
    PySendResult sent = PYGEN_RETURN;
    while (sent == PYGEN_RETURN) {
        if (buffer->awaited) {
            refuse_second_consumer(buffer, "task");
            return end_receive(receive, PYGEN_ERROR);
        }
        if (buffer->count && reader->left > 0)
            return take_output(receive, result);
        if (buffer->count == 0 && buffer->end != NULL)
            return conclude(receive);
        sent = buffer->count ? yield_turn(receive, result) : wait_for_output(receive, result);
    }
    return sent;
}

/* Begin to work on a receive, unless it is over or at work already. */
static int enter(Receive *receive)
{
    if (receive->running)
        PyErr_SetString(PyExc_ValueError, "the receive is already executing");
    else if (receive->state == OVER)
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an already awaited receive");
    if (PyErr_Occurred())
        return -1;
    receive->running = 1;
    return 0;
}

/* Whether the waiter itself was yielded to a task that has not been resumed: then it is another task
   that sends, and awaits the same receive. */
static int is_awaited(Receive *receive)
{
    return receive->state == WAITS && receive->inner == NULL &&
           waiter_is_awaited(receive->reader->waiter);
}

static PySendResult receive_send(Receive *receive, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (enter(receive) < 0)
        return PYGEN_ERROR;
    if (is_awaited(receive)) {
        PyErr_SetString(PyExc_RuntimeError, "the receive is being awaited already");
        receive->running = 0;
        return PYGEN_ERROR;
    }
    PySendResult sent = receive->state == NEW ? PYGEN_RETURN
                                              : go_on_waiting(receive, value, result);
    if (sent == PYGEN_RETURN)
        sent = go_on(receive, result);
    receive->running = 0;
    return sent;
}

/* ---- as Python sees a receive: like a coroutine */

static PyObject *return_sent(PySendResult sent, PyObject *result)
{
    if (sent == PYGEN_RETURN) {
        raise_object(PyObject_CallOneArg(PyExc_StopIteration, result));
        Py_CLEAR(result);
    }
    return sent == PYGEN_ERROR ? NULL : result;
}

static PyObject *method_send(Receive *receive, PyObject *value)
{
    PyObject *result;
    PySendResult sent = receive_send(receive, value, &result);
    return return_sent(sent, result);
}

static PyObject *receive_next(Receive *receive)
{
    return method_send(receive, Py_None);
}

/* Throw into what is awaited, if that takes it. Returns what it yields, if it goes on; NULL with an
   exception otherwise, which is StopIteration if it has ended all the same. */
static PyObject *throw_inside(Receive *receive, PyObject *args, PyObject *type, PyObject *value,
                              int *inside)
{
    PyObject *inner = Py_XNewRef(receive->inner), *result = NULL;
    PyObject *throw_ = inner == NULL ? NULL : PyObject_GetAttr(inner, names.throw_);
    *inside = throw_ != NULL;
    if (throw_ != NULL)
        result = PyObject_Call(throw_, args, NULL);
    else if (clear_attribute_error() == 0) {
        if (PyExceptionInstance_Check(type))
            PyErr_SetObject((PyObject *)Py_TYPE(type), type);
        else if (PyExceptionClass_Check(type))
            PyErr_SetObject(type, value == NULL || value == Py_None ? NULL : value);
        else
            PyErr_SetString(PyExc_TypeError, "throw takes an exception");
        if (PyErr_ExceptionMatches(PyExc_StopIteration)) /* as out of a coroutine */
            PyErr_SetString(PyExc_RuntimeError, "the receive raised StopIteration");
    }
    Py_XDECREF(throw_);
    Py_XDECREF(inner);
    return result;
}

static PyObject *method_throw(Receive *receive, PyObject *args)
{
    PyObject *type, *value = NULL, *traceback = NULL, *result = NULL;
    int inside;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &traceback) || enter(receive) < 0)
        return NULL;
    PySendResult sent = PYGEN_NEXT;
    result = throw_inside(receive, args, type, value, &inside);
    if (result == NULL && inside && PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyErr_Clear();
        leave_wait(receive);
        sent = go_on(receive, &result);
    } else if (result == NULL)
        sent = fail_in_wait(receive);
    receive->running = 0;
    return return_sent(sent, result);
}

static PyObject *method_close(Receive *receive, PyObject *Py_UNUSED(none))
{
    if (receive->state == OVER && !receive->running)
        Py_RETURN_NONE;
    if (enter(receive) < 0)
        return NULL;
    PyObject *inner = Py_XNewRef(receive->inner);
    end_receive(receive, PYGEN_RETURN);
    receive->running = 0;
    PyObject *close = inner == NULL ? NULL : PyObject_GetAttr(inner, names.close);
    PyObject *result = NULL;
    if (close != NULL)
        result = PyObject_CallNoArgs(close);
    else if (clear_attribute_error() == 0)
        result = Py_NewRef(Py_None);
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
    end_receive(receive, PYGEN_RETURN);
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
    Receive *receive = reader_buffer(&reader->base) == NULL ? NULL
        : PyObject_GC_New(Receive, &ReceiveType);
    if (receive == NULL)
        return NULL;
    receive->reader = (AsyncReader *)Py_NewRef(reader);
    receive->inner = NULL;
    receive->state = NEW;
    receive->running = 0;
    PyObject_GC_Track(receive);
    return (PyObject *)receive;
}

static PyObject *method_drain(AsyncReader *reader, PyObject *Py_UNUSED(none))
{
    Buffer *buffer = reader_buffer(&reader->base);
    if (buffer != NULL && buffer->awaited)
        refuse_second_consumer(buffer, "task");
    return buffer == NULL || buffer->awaited ? NULL : buffer_take_all(buffer, NULL);
}

static int async_reader_init(AsyncReader *reader, PyObject *args, PyObject *keywords)
{
    reader->left = (short)outputs_per_turn;
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
