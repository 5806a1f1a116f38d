/* One consumer's end of a buffer, in a thread: StreamReader in _streams/stream.py. */

#include "native.h"
#include "pythread.h"

int reader_init(Reader *reader, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"buffer", "upstream", NULL};
    PyObject *buffer, *upstream;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O", words, &BufferType, &buffer, &upstream))
        return -1;
    PyObject *pull = PyObject_GetAttr(upstream, names.role);
    if (pull == NULL)
        PyErr_Clear();
    else if (!Py_IS_TYPE(pull, &PullType))
        Py_CLEAR(pull);
    Py_XSETREF(reader->buffer, (Buffer *)Py_NewRef(buffer));
    Py_XSETREF(reader->upstream, Py_NewRef(upstream));
    Py_XSETREF(reader->pull, (Pull *)pull);
    return 0;
}

PyObject *reader_refuse_concurrent(Reader *reader, const char *consumer)
{
    PyObject *name = PyObject_GetAttr((PyObject *)reader->buffer, names.name);
    PyObject *error = name == NULL ? NULL
        : PyObject_CallFunction(imported.concurrent_error, "Os", name, consumer);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(name);
    Py_XDECREF(error);
    return NULL;
}

/* Let the upstream fill an empty buffer, unless its stream has ended: then 1. */
static int wait_for_output(Reader *reader, PyObject *deadline)
{
    Buffer *buffer = reader->buffer;
    unsigned long me = PyThread_get_thread_ident();
    if (buffer_made_room(buffer) < 0) /* once more: the receive before was broken off */
        return -1;
    if (buffer->end != NULL)
        return buffer->count ? 0 : buffer_conclude(buffer) < 0 ? -1 : 1;
    if (buffer->consumer != 0 && buffer->consumer != me) {
        reader_refuse_concurrent(reader, "thread");
        return -1;
    }
    /* Held: what they wait for may drop the stream, and this reader with it. */
    PyObject *upstream = Py_NewRef(reader->upstream);
    Py_INCREF(buffer);
    Py_XINCREF(reader->pull);
    Pull *pull = reader->pull;
    unsigned long before = buffer->consumer; /* me, where a signal's handler receives */
    buffer->consumer = me;
    int made = pull == NULL ? 0 : pull_step(pull, buffer, upstream);
    if (made == 0) {
        PyObject *result = PyObject_CallMethodObjArgs(upstream, names.wait, (PyObject *)buffer,
                                                      deadline, NULL);
        made = result == NULL ? -1 : 1;
        Py_XDECREF(result);
    }
    buffer->consumer = before;
    Py_XDECREF(pull);
    Py_DECREF(buffer);
    Py_DECREF(upstream);
    return made < 0 ? -1 : 0;
}

static PyObject *reader_next(Reader *reader)
{
    Buffer *buffer = reader->buffer;
    if (buffer == NULL)
        return NULL;
    Py_INCREF(reader); /* the buffer lives as long as this */
    int over = 0;
    while (!over && buffer->count == 0)
        over = wait_for_output(reader, Py_None);
    PyObject *output = NULL;
    if (!over) {
        output = buffer_take(buffer);
        if (buffer_made_room(buffer) < 0)
            Py_CLEAR(output);
    }
    Py_DECREF(reader);
    return output;
}

static PyObject *method_wait(Reader *reader, PyObject *deadline)
{
    int over = wait_for_output(reader, deadline);
    if (over > 0)
        PyErr_SetNone(PyExc_StopIteration);
    if (over)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *method_drain(Reader *reader, PyObject *Py_UNUSED(none))
{
    unsigned long consumer = reader->buffer->consumer;
    if (consumer != 0 && consumer != PyThread_get_thread_ident())
        return reader_refuse_concurrent(reader, "thread");
    return buffer_take_all(reader->buffer);
}

int reader_traverse(Reader *reader, visitproc visit, void *arg)
{
    Py_VISIT(reader->buffer);
    Py_VISIT(reader->upstream);
    Py_VISIT(reader->pull);
    return 0;
}

int reader_clear(Reader *reader)
{
    Py_CLEAR(reader->buffer);
    Py_CLEAR(reader->upstream);
    Py_CLEAR(reader->pull);
    return 0;
}

static void reader_dealloc(Reader *reader)
{
    PyObject_GC_UnTrack(reader);
    if (reader->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)reader);
    reader_clear(reader);
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
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)reader_init,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_traverse = (traverseproc)reader_traverse,
    .tp_clear = (inquiry)reader_clear,
    .tp_iter = return_self,
    .tp_iternext = (iternextfunc)reader_next,
    .tp_methods = reader_methods,
    .tp_members = reader_members,
    .tp_weaklistoffset = offsetof(Reader, weakrefs),
};
