/* What one stream holds between the pump that writes it and the consumer that reads it.

   The same as Buffer in _handoff/buffer.py, but for this: the outputs are a ring inside the buffer,
   so that `buffer.outputs` is the buffer itself. */

#include "native.h"

enum { FIRST_CAPACITY = 4, KEPT_CAPACITY = 64 };

static PyObject **place_of(Buffer *buffer, unsigned int n)
{
    return &buffer->outputs[(buffer->first + n) & (buffer->capacity - 1)];
}

int buffer_reserve(Buffer *buffer, size_t more)
{
    if (more <= buffer->capacity - buffer->count)
        return 0;
    size_t capacity = buffer->capacity ? buffer->capacity : FIRST_CAPACITY;
    while (capacity < buffer->count + more)
        capacity *= 2;
    PyObject **outputs = capacity > 1u << 31 ? NULL : PyMem_New(PyObject *, capacity);
    if (outputs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (unsigned int n = 0; n < buffer->count; n++)
        outputs[n] = *place_of(buffer, n);
    PyMem_Free(buffer->outputs);
    buffer->outputs = outputs;
    buffer->capacity = (unsigned int)capacity;
    buffer->first = 0;
    return 0;
}

void buffer_append(Buffer *buffer, PyObject *output)
{
    if (buffer->cancelled)
        return;
    *place_of(buffer, buffer->count) = Py_NewRef(output);
    buffer->count++;
}

PyObject *buffer_take(Buffer *buffer)
{
    PyObject *output = *place_of(buffer, 0);
    buffer->first = (buffer->first + 1) & (buffer->capacity - 1);
    if (--buffer->count == 0 && buffer->capacity > KEPT_CAPACITY) {
        PyMem_Free(buffer->outputs);
        buffer->outputs = NULL;
        buffer->capacity = buffer->first = 0;
    }
    return output;
}

/* Drop what is buffered. What is dropped may use the buffer, which is empty by then. */
static void discard(Buffer *buffer)
{
    Buffer old = *buffer;
    buffer->outputs = NULL;
    buffer->capacity = buffer->first = buffer->count = 0;
    for (unsigned int n = 0; n < old.count; n++)
        Py_DECREF(*place_of(&old, n));
    PyMem_Free(old.outputs);
}

int buffer_made_room(Buffer *buffer)
{
    if (buffer->on_room == NULL)
        return 0;
    PyObject *on_room = Py_NewRef(buffer->on_room); /* the pump may reset it meanwhile */
    PyObject *result = PyObject_CallOneArg(on_room, (PyObject *)buffer);
    Py_DECREF(on_room);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int refuse(Buffer *buffer)
{
    if (buffer->refusal == NULL)
        return 0;
    PyErr_SetObject(PyExc_RuntimeError, buffer->refusal);
    return -1;
}

/* Give back, in front of what has come since, what was taken and could not be handed on. */
static int give_back(Buffer *buffer, PyObject *taken)
{
    Py_ssize_t count = PyList_GET_SIZE(taken);
    if (buffer->cancelled)
        return 0;
    if (buffer_reserve(buffer, (size_t)count) < 0)
        return -1;
    while (count-- > 0) {
        buffer->first = (buffer->first - 1) & (buffer->capacity - 1);
        *place_of(buffer, 0) = Py_NewRef(PyList_GET_ITEM(taken, count));
        buffer->count++;
    }
    return 0;
}

PyObject *buffer_take_all(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    if (refuse(buffer) < 0)
        return NULL;
    PyObject *taken = PyList_New(0);
    /* The list may start a collection, and what that frees receive: so it is made first, and it is
       made longer before an output is taken. */
    int failed = taken == NULL;
    while (!failed && buffer->count) {
        failed = PyList_Append(taken, *place_of(buffer, 0)) < 0;
        if (!failed)
            Py_DECREF(buffer_take(buffer)); /* the list has it */
    }
    failed = failed || buffer_made_room(buffer) < 0;
    if (failed && taken != NULL) { /* a signal's exception: the caller does not get the list */
        PyObject *error = take_exception();
        if (give_back(buffer, taken) < 0)
            PyErr_WriteUnraisable((PyObject *)buffer);
        Py_CLEAR(taken);
        give_exception(error);
    }
    return taken;
}

int buffer_conclude(Buffer *buffer)
{
    if (refuse(buffer) < 0)
        return -1;
    if (buffer->end == NULL || buffer->cancelled)
        return 0;
    PyObject *error = PyObject_GetAttr(buffer->end, names.error);
    if (error == NULL || error == Py_None) {
        Py_XDECREF(error);
        return error == NULL ? -1 : 0;
    }
    PyObject *own = PyObject_CallOneArg(given.consumer_error, error);
    Py_DECREF(error);
    if (own == NULL)
        return -1;
    buffer->cancelled = 1; /* from now on it is simply over */
    discard(buffer);
    return raise_object(own);
}

int buffer_finish(Buffer *buffer, PyObject *end)
{
    if (!Py_IS_TYPE(buffer, &BufferType))
        return call_method((PyObject *)buffer, names.finish, end);
    if (buffer->end == NULL)
        buffer->end = Py_NewRef(end);
    return 0;
}

/* ---- as Python sees it */

static int buffer_init(Buffer *buffer, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"slot", "name", NULL};
    PyObject *name = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "i|O", words, &buffer->slot, &name))
        return -1;
    Py_XSETREF(buffer->name, name == Py_None ? NULL : Py_NewRef(name));
    return 0;
}

static PyObject *method_append(Buffer *buffer, PyObject *output)
{
    if (buffer_reserve(buffer, 1) < 0)
        return NULL;
    buffer_append(buffer, output);
    Py_RETURN_NONE;
}

static PyObject *method_popleft(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    if (buffer->count)
        return buffer_take(buffer);
    PyErr_SetString(PyExc_IndexError, "no output is buffered");
    return NULL;
}

static PyObject *method_conclude(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    return buffer_conclude(buffer) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *method_finish(Buffer *buffer, PyObject *end)
{
    if (buffer->end == NULL)
        buffer->end = Py_NewRef(end);
    Py_RETURN_NONE;
}

static PyObject *method_shut(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    buffer->cancelled = 1;
    discard(buffer);
    Py_RETURN_NONE;
}

static PyObject *method_cancel(Buffer *buffer, PyObject *end)
{
    return buffer_finish(buffer, end) < 0 ? NULL : method_shut(buffer, NULL);
}

static PyObject *method_refuse_after_fork(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    buffer->awaited = 0;
    buffer->consumer = 0;
    if (buffer->end == NULL)
        discard(buffer);
    Py_RETURN_NONE;
}

static PyObject *method_is_full(Buffer *buffer, PyObject *limit)
{
    Py_ssize_t most = PyNumber_AsSsize_t(limit, NULL);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (buffer->cancelled || (Py_ssize_t)buffer->count >= most || buffer->sizes == NULL)
        return PyBool_FromLong(buffer->cancelled || (Py_ssize_t)buffer->count >= most);
    PyObject *unread = PyLong_FromLong(buffer->count), *sizes = Py_NewRef(buffer->sizes);
    PyObject *full = unread == NULL ? NULL
        : PyObject_CallMethodOneArg(sizes, names.are_full, unread);
    Py_XDECREF(unread);
    Py_DECREF(sizes);
    return full;
}

static Py_ssize_t buffer_length(Buffer *buffer)
{
    return buffer->count;
}

static PyObject *buffer_item(Buffer *buffer, Py_ssize_t n)
{
    if (n >= 0 && n < (Py_ssize_t)buffer->count)
        return Py_NewRef(*place_of(buffer, (unsigned int)n));
    PyErr_SetString(PyExc_IndexError, "no such output is buffered");
    return NULL;
}

/* Put an output in the place of one that is buffered, as `outputs[-1] = output`. Runs no code before
   that is done. */
static int buffer_replace(Buffer *buffer, Py_ssize_t n, PyObject *output)
{
    if (output == NULL || n < 0 || n >= (Py_ssize_t)buffer->count) {
        PyErr_SetString(PyExc_IndexError, "no such output is buffered");
        return -1;
    }
    PyObject *before = *place_of(buffer, (unsigned int)n);
    *place_of(buffer, (unsigned int)n) = Py_NewRef(output);
    Py_DECREF(before);
    return 0;
}

static PyObject *get_name(Buffer *buffer, void *Py_UNUSED(closure))
{
    return buffer->name != NULL ? Py_NewRef(buffer->name)
                                : PyUnicode_FromFormat("stream %d", buffer->slot);
}

static PyObject *get_ends(Buffer *buffer, void *Py_UNUSED(closure))
{
    return buffer->end == NULL ? PyTuple_New(0) : PyTuple_Pack(1, buffer->end);
}

static PyObject *get_ready(Buffer *buffer, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(buffer->count || buffer->end != NULL);
}

static PyObject *get_outputs(PyObject *buffer, void *Py_UNUSED(closure))
{
    return Py_NewRef(buffer);
}

/* An attribute that Python sets to None where there is nothing, kept as NULL. */
static int set_optional(PyObject *buffer, PyObject *value, void *offset)
{
    PyObject **place = (PyObject **)((char *)buffer + (size_t)offset);
    Py_XSETREF(*place, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static PyObject *get_optional(PyObject *buffer, void *offset)
{
    PyObject *value = *(PyObject **)((char *)buffer + (size_t)offset);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int buffer_traverse(Buffer *buffer, visitproc visit, void *arg)
{
    for (unsigned int n = 0; n < buffer->count; n++)
        Py_VISIT(*place_of(buffer, n));
    Py_VISIT(buffer->name);
    Py_VISIT(buffer->end);
    Py_VISIT(buffer->refusal);
    Py_VISIT(buffer->on_room);
    Py_VISIT(buffer->sizes);
    return 0;
}

static int buffer_clear(Buffer *buffer)
{
    discard(buffer);
    Py_CLEAR(buffer->name);
    Py_CLEAR(buffer->end);
    Py_CLEAR(buffer->refusal);
    Py_CLEAR(buffer->on_room);
    Py_CLEAR(buffer->sizes);
    return 0;
}

static void buffer_dealloc(Buffer *buffer)
{
    PyObject_GC_UnTrack(buffer);
    buffer_clear(buffer);
    Py_TYPE(buffer)->tp_free((PyObject *)buffer);
}

static PyMethodDef buffer_methods[] = {
    {"append", (PyCFunction)method_append, METH_O, NULL},
    {"popleft", (PyCFunction)method_popleft, METH_NOARGS, NULL},
    {"take_all", (PyCFunction)buffer_take_all, METH_NOARGS, NULL},
    {"conclude", (PyCFunction)method_conclude, METH_NOARGS, NULL},
    {"finish", (PyCFunction)method_finish, METH_O, NULL},
    {"cancel", (PyCFunction)method_cancel, METH_O, NULL},
    {"shut", (PyCFunction)method_shut, METH_NOARGS, NULL},
    {"refuse_after_fork", (PyCFunction)method_refuse_after_fork, METH_NOARGS, NULL},
    {"is_full", (PyCFunction)method_is_full, METH_O, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};

static PyMemberDef buffer_members[] = {
    {"slot", T_INT, offsetof(Buffer, slot), 0, NULL},
    {"consumer", T_ULONG, offsetof(Buffer, consumer), READONLY, NULL},
    {"cancelled", T_BOOL, offsetof(Buffer, cancelled), 0, NULL},
    {"awaited", T_BOOL, offsetof(Buffer, awaited), 0, NULL},
    {NULL},
};

static PyGetSetDef buffer_getset[] = {
    {"name", (getter)get_name, NULL, NULL, NULL},
    {"end", get_optional, NULL, NULL, (void *)offsetof(Buffer, end)},
    {"ends", (getter)get_ends, NULL, NULL, NULL},
    {"ready", (getter)get_ready, NULL, NULL, NULL},
    {"outputs", get_outputs, NULL, NULL, NULL},
    {"refusal", get_optional, set_optional, NULL, (void *)offsetof(Buffer, refusal)},
    {"on_room", get_optional, set_optional, NULL, (void *)offsetof(Buffer, on_room)},
    {"sizes", get_optional, set_optional, NULL, (void *)offsetof(Buffer, sizes)},
    {NULL},
};

static PySequenceMethods buffer_as_sequence = {
    .sq_length = (lenfunc)buffer_length,
    .sq_item = (ssizeargfunc)buffer_item,
    .sq_ass_item = (ssizeobjargproc)buffer_replace,
};

PyTypeObject BufferType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Buffer",
    .tp_doc = "The outputs of one slot that wait to be received, and the slot's end.",
    .tp_basicsize = sizeof(Buffer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)buffer_init,
    .tp_dealloc = (destructor)buffer_dealloc,
    .tp_traverse = (traverseproc)buffer_traverse,
    .tp_clear = (inquiry)buffer_clear,
    .tp_methods = buffer_methods,
    .tp_members = buffer_members,
    .tp_getset = buffer_getset,
    .tp_as_sequence = &buffer_as_sequence,
};
