/* One consumer's end of a buffer, in a thread: StreamReader in _streams/stream.py. */

#include "native.h"
#include "pythread.h"

typedef struct {
    Reader base;
    Role *role; /* that of the upstream, for the quick way to make a step; NULL: it has none */
} ThreadReader;

Buffer *reader_buffer(Reader *reader)
{
    if (reader->buffer == NULL)
        PyErr_SetString(PyExc_AttributeError, "the stream has no buffer: it was not initialised");
    return reader->buffer;
}

int refuse_second_consumer(Buffer *buffer, const char *consumer)
{
    PyObject *name = PyObject_GetAttr((PyObject *)buffer, names.name);
    PyObject *error = name == NULL ? NULL
        : PyObject_CallFunction(given.concurrent_error, "Os", name, consumer);
    Py_XDECREF(name);
    return raise_object(error);
}

/* Let the upstream fill an empty buffer, unless its stream has ended: then 1. */
static int wait_for_output(ThreadReader *reader, PyObject *deadline)
{
    Buffer *buffer = reader_buffer(&reader->base);
    unsigned long me = PyThread_get_thread_ident();
    if (buffer == NULL || buffer_made_room(buffer) < 0) /* the receive before was broken off */
        return -1;
    if (buffer->end != NULL)
        return buffer->count ? 0 : buffer_conclude(buffer) < 0 ? -1 : 1;
    if (buffer->consumer != 0 && buffer->consumer != me)
        return refuse_second_consumer(buffer, "thread");
    /* Held: what they wait for may drop the stream, and this reader with it. */
    PyObject *upstream = Py_NewRef(reader->base.upstream);
    Role *role = (Role *)Py_XNewRef((PyObject *)reader->role);
    Py_INCREF(buffer);
    unsigned long before = buffer->consumer; /* this thread, where a signal's handler receives */
    buffer->consumer = me;
    int made = role == NULL ? 0 : role_make_step(role, buffer, upstream);
    if (made == 0) {
        PyObject *result = PyObject_CallMethodObjArgs(upstream, names.wait, (PyObject *)buffer,
                                                      deadline, NULL);
        made = result == NULL ? -1 : 1;
        Py_XDECREF(result);
    }
    buffer->consumer = before;
    Py_DECREF(buffer);
    Py_XDECREF((PyObject *)role);
    Py_DECREF(upstream);
    return made < 0 ? -1 : 0;
}

static PyObject *reader_next(ThreadReader *reader)
{
    Buffer *buffer = reader_buffer(&reader->base);
    if (buffer == NULL)
        return NULL;
    Py_INCREF(reader); /* what it waits for may drop it: not every caller holds it, see chain */
    Py_INCREF(buffer);
    int over = 0;
    while (!over && buffer->count == 0)
        over = wait_for_output(reader, Py_None);
    PyObject *output = over ? NULL : buffer_take(buffer);
    if (output != NULL && buffer_made_room(buffer) < 0)
        Py_CLEAR(output);
    Py_DECREF(buffer);
    Py_DECREF(reader);
    return output;
}

/* ---- as Python sees it */

static PyObject *method_wait(ThreadReader *reader, PyObject *deadline)
{
    int over = wait_for_output(reader, deadline);
    if (over > 0)
        PyErr_SetNone(PyExc_StopIteration);
    return over ? NULL : Py_NewRef(Py_None);
}

static PyObject *method_drain(Reader *reader, PyObject *Py_UNUSED(none))
{
    Buffer *buffer = reader_buffer(reader);
    if (buffer == NULL)
        return NULL;
    if (buffer->consumer != 0 && buffer->consumer != PyThread_get_thread_ident()) {
        refuse_second_consumer(buffer, "thread");
        return NULL;
    }
    return buffer_take_all(buffer, NULL);
}

int reader_init(Reader *reader, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"buffer", "upstream", NULL};
    PyObject *buffer, *upstream;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O", words, &BufferType, &buffer, &upstream))
        return -1;
    Py_XSETREF(reader->buffer, (Buffer *)Py_NewRef(buffer));
    Py_XSETREF(reader->upstream, Py_NewRef(upstream));
    return 0;
}

static int thread_reader_init(ThreadReader *reader, PyObject *args, PyObject *keywords)
{
    if (reader_init(&reader->base, args, keywords) < 0)
        return -1;
    PyObject *role = PyObject_GetAttr(reader->base.upstream, names.role);
    if (role == NULL && clear_attribute_error() < 0)
        return -1;
    if (role != NULL && !Py_IS_TYPE(role, &RoleType))
        Py_CLEAR(role);
    Py_XSETREF(reader->role, (Role *)role);
    return 0;
}

int reader_traverse(Reader *reader, visitproc visit, void *arg)
{
    Py_VISIT(reader->buffer);
    Py_VISIT(reader->upstream);
    return 0;
}

int reader_clear(Reader *reader)
{
    Py_CLEAR(reader->buffer);
    Py_CLEAR(reader->upstream);
    return 0;
}

static int thread_reader_traverse(ThreadReader *reader, visitproc visit, void *arg)
{
    Py_VISIT(reader->role);
    return reader_traverse(&reader->base, visit, arg);
}

static int thread_reader_clear(ThreadReader *reader)
{
    Py_CLEAR(reader->role);
    return reader_clear(&reader->base);
}

static void thread_reader_dealloc(ThreadReader *reader)
{
    PyObject_GC_UnTrack(reader);
    if (reader->base.weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)reader);
    thread_reader_clear(reader);
    Py_TYPE(reader)->tp_free((PyObject *)reader);
}

static PyMethodDef reader_methods[] = {
    {"_wait", (PyCFunction)method_wait, METH_O, NULL},
    {"drain", (PyCFunction)method_drain, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};

static PyMemberDef reader_members[] = {
    {"_buffer", T_OBJECT_EX, offsetof(Reader, buffer), READONLY, NULL},
    {"_upstream", T_OBJECT_EX, offsetof(Reader, upstream), READONLY, NULL},
    {NULL},
};

PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.StreamReader",
    .tp_doc = "One consumer's end of a buffer, in a thread.",
    .tp_basicsize = sizeof(ThreadReader),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)thread_reader_init,
    .tp_dealloc = (destructor)thread_reader_dealloc,
    .tp_traverse = (traverseproc)thread_reader_traverse,
    .tp_clear = (inquiry)thread_reader_clear,
    .tp_iter = return_self,
    .tp_iternext = (iternextfunc)reader_next,
    .tp_methods = reader_methods,
    .tp_members = reader_members,
    .tp_weaklistoffset = offsetof(Reader, weakrefs),
};
