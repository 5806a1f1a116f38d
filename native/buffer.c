/* What one stream holds between the pump that writes it and the consumer that reads it.

   The same as Buffer in _handoff/buffer.py, but for this: the outputs are a ring inside the buffer,
   so that `buffer.outputs` is the buffer itself, which has the methods of a deque. */

#include "native.h"

enum { FIRST_CAPACITY = 4, KEPT_CAPACITY = 64 };

int buffer_reserve(Buffer *buffer, unsigned int more)
{
    if (more <= buffer->capacity - buffer->count)
        return 0;
    size_t capacity = buffer->capacity ? buffer->capacity : FIRST_CAPACITY;
    while (capacity < (size_t)buffer->count + more)
        capacity *= 2;
    PyObject **outputs = capacity > (1u << 31) ? NULL : PyMem_New(PyObject *, capacity);
    if (outputs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (unsigned int n = 0; n < buffer->count; n++)
        outputs[n] = buffer->outputs[(buffer->first + n) & (buffer->capacity - 1)];
    PyMem_Free(buffer->outputs);
    buffer->outputs = outputs;
    buffer->capacity = (unsigned int)capacity;
    buffer->first = 0;
    return 0;
}

void buffer_append(Buffer *buffer, PyObject *output)
{
    if (buffer->cancelled)
        return; /* discarded */
    buffer->outputs[(buffer->first + buffer->count) & (buffer->capacity - 1)] = Py_NewRef(output);
    buffer->count++;
}

PyObject *buffer_take(Buffer *buffer)
{
    PyObject *output = buffer->outputs[buffer->first];
    buffer->first = (buffer->first + 1) & (buffer->capacity - 1);
    if (--buffer->count == 0 && buffer->capacity > KEPT_CAPACITY) {
        PyMem_Free(buffer->outputs);
        buffer->outputs = NULL;
        buffer->capacity = buffer->first = 0;
    }
    return output;
}

/* Drop what is buffered. Runs code: what it drops may use the buffer, which is empty by then. */
static void discard(Buffer *buffer)
{
    PyObject **outputs = buffer->outputs;
    unsigned int first = buffer->first, count = buffer->count, capacity = buffer->capacity;
    buffer->outputs = NULL;
    buffer->capacity = buffer->first = buffer->count = 0;
    for (unsigned int n = 0; n < count; n++)
        Py_DECREF(outputs[(first + n) & (capacity - 1)]);
    PyMem_Free(outputs);
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

static int refused(Buffer *buffer)
{
    if (buffer->refusal != NULL)
        PyErr_SetObject(PyExc_RuntimeError, buffer->refusal);
    return buffer->refusal != NULL;
}

/* Give back, in front of what has come since, what was taken and could not be handed on. */
static int give_back(Buffer *buffer, PyObject *taken)
{
    Py_ssize_t count = PyList_GET_SIZE(taken);
    if (buffer->cancelled)
        return 0;
    if (buffer_reserve(buffer, (unsigned int)count) < 0)
        return -1;
    for (Py_ssize_t n = count - 1; n >= 0; n--) {
        buffer->first = (buffer->first - 1) & (buffer->capacity - 1);
        buffer->outputs[buffer->first] = Py_NewRef(PyList_GET_ITEM(taken, n));
        buffer->count++;
    }
    return 0;
}

PyObject *buffer_take_all(Buffer *buffer)
{
    if (refused(buffer))
        return NULL;
    PyObject *taken = PyList_New(buffer->count); /* may start a collection, and that receive */
    if (taken == NULL)
        return NULL;
    Py_ssize_t wanted = PyList_GET_SIZE(taken), count = 0;
    while (buffer->count && count < wanted)
        PyList_SET_ITEM(taken, count++, buffer_take(buffer));
    if (count < wanted && PyList_SetSlice(taken, count, wanted, NULL) < 0) {
        Py_DECREF(taken);
        return NULL;
    }
    if (buffer_made_room(buffer) < 0) {
        PyObject *error = take_exception(); /* a signal's: the caller does not get the list */
        if (give_back(buffer, taken) < 0)
            PyErr_WriteUnraisable((PyObject *)buffer);
        Py_DECREF(taken);
        set_exception(error);
        return NULL;
    }
    return taken;
}

int buffer_conclude(Buffer *buffer)
{
    if (refused(buffer))
        return -1;
    if (buffer->end == NULL || buffer->cancelled)
        return 0;
    PyObject *error = PyObject_GetAttr(buffer->end, names.error);
    if (error == NULL)
        return -1;
    PyObject *own = error == Py_None ? NULL : PyObject_CallOneArg(imported.consumer_error, error);
    int ends_in_error = error != Py_None;
    Py_DECREF(error);
    if (!ends_in_error)
        return 0;
    if (own == NULL)
        return -1;
    buffer->cancelled = 1;
    PyErr_SetObject((PyObject *)Py_TYPE(own), own);
    Py_DECREF(own);
    discard(buffer);
    return -1;
}

int buffer_finish(Buffer *buffer, PyObject *end)
{
    if (Py_IS_TYPE(buffer, &BufferType)) {
        if (buffer->end == NULL)
            buffer->end = Py_NewRef(end);
        return 0;
    }
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)buffer, names.finish, end);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- as Python sees it */

static int buffer_init(Buffer *buffer, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"slot", "name", NULL};
    PyObject *name = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "i|O", words, &buffer->slot, &name))
        return -1;
    if (name != Py_None)
        Py_XSETREF(buffer->name, Py_NewRef(name));
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

static PyObject *method_take_all(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    return buffer_take_all(buffer);
}

static PyObject *method_conclude(Buffer *buffer, PyObject *Py_UNUSED(none))
{
    if (buffer_conclude(buffer) < 0)
        return NULL;
    Py_RETURN_NONE;
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
    if (buffer_finish(buffer, end) < 0)
        return NULL;
    return method_shut(buffer, NULL);
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
    return PyBool_FromLong(buffer->cancelled || (Py_ssize_t)buffer->count >= most);
}

static Py_ssize_t buffer_length(Buffer *buffer)
{
    return buffer->count;
}

static PyObject *buffer_item(Buffer *buffer, Py_ssize_t n)
{
    if (n >= 0 && n < (Py_ssize_t)buffer->count)
        return Py_NewRef(buffer->outputs[(buffer->first + (unsigned int)n) & (buffer->capacity - 1)]);
    PyErr_SetString(PyExc_IndexError, "no such output is buffered");
    return NULL;
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
static PyObject *get_optional(PyObject *buffer, void *offset)
{
    PyObject *value = *(PyObject **)((char *)buffer + (size_t)offset);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int set_optional(PyObject *buffer, PyObject *value, void *offset)
{
    PyObject **place = (PyObject **)((char *)buffer + (size_t)offset);
    Py_XSETREF(*place, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static int buffer_traverse(Buffer *buffer, visitproc visit, void *arg)
{
    for (unsigned int n = 0; n < buffer->count; n++)
        Py_VISIT(buffer->outputs[(buffer->first + n) & (buffer->capacity - 1)]);
    Py_VISIT(buffer->name);
    Py_VISIT(buffer->end);
    Py_VISIT(buffer->refusal);
    Py_VISIT(buffer->on_room);
    return 0;
}

static int buffer_clear(Buffer *buffer)
{
    discard(buffer);
    Py_CLEAR(buffer->name);
    Py_CLEAR(buffer->end);
    Py_CLEAR(buffer->refusal);
    Py_CLEAR(buffer->on_room);
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
    {"take_all", (PyCFunction)method_take_all, METH_NOARGS, NULL},
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
    {NULL},
};

static PySequenceMethods buffer_as_sequence = {
    .sq_length = (lenfunc)buffer_length,
    .sq_item = (ssizeargfunc)buffer_item,
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
