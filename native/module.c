/* The module: what the package in Python gives to it, what it offers, and calls into Python. */

#include "native.h"

Given given;
Names names;
int outputs_per_turn = 64, waiters_per_turn = 64;

int call_method(PyObject *object, PyObject *name, PyObject *argument)
{
    PyObject *result = argument == NULL ? PyObject_CallMethodNoArgs(object, name)
                                        : PyObject_CallMethodOneArg(object, name, argument);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int raise_object(PyObject *exception)
{
    if (exception != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    return -1;
}

PyObject *take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    if (!PyErr_Occurred()) /* most often: to normalise nothing would cost more than this */
        return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

void give_exception(PyObject *exception)
{
    if (exception == NULL)
        return;
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exception);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exception)), exception,
                  PyException_GetTraceback(exception));
#endif
}

int clear_attribute_error(void)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    PyErr_Clear();
    return 0;
}

void leave_context(PyObject *context, PyObject **result)
{
    PyObject *error = *result == NULL ? take_exception() : NULL;
    if (PyContext_Exit(context) < 0)
        Py_CLEAR(*result);
    give_exception(error);
}

PyObject *return_self(PyObject *self)
{
    return Py_NewRef(self);
}

/* ---- as the package is imported */

/* Whether the caller may use this module. The first may, and no other: the objects of the package
   that are kept here belong to one interpreter, and to one import. */
static PyObject *claim(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    static int claimed = 0;
    int first = !claimed;
    claimed = 1;
    return PyBool_FromLong(first);
}

static PyObject *bind(PyObject *Py_UNUSED(module), PyObject *args)
{
    Given g;
    if (!PyArg_ParseTuple(args, "OOOOOOOO!O!O!O!O!O!OOOOOO", &g.eos_reason, &g.length_reason,
                          &g.error_reason, &g.stream_end, &g.delivery, &g.eos, &g.skip,
                          &PyType_Type, &g.signal, &PyType_Type, &g.last, &PyType_Type, &g.end,
                          &PyType_Type, &g.fail, &PyType_Type, &g.many, &PyType_Type, &g.requeue,
                          &g.consumer_error, &g.concurrent_error, &g.read_step, &g.is_true,
                          &g.uncalled_marker, &g.requeue_error))
        return NULL;
    given = g;
    Py_INCREF(args); /* for ever, and all that it holds */
    Py_RETURN_NONE;
}

static PyObject *set_turns(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "ii", &outputs_per_turn, &waiters_per_turn))
        return NULL;
    Py_RETURN_NONE;
}

static int intern_names(void)
{
    const struct { PyObject **place; const char *name; } table[] = {
        {&names.advance, "advance"}, {&names.advance_state, "_advance"},
        {&names.apply_departures_if_free, "_apply_departures_if_free"},
        {&names.are_full, "are_full"},
        {&names.attach, "_attach"}, {&names.call_soon, "call_soon"},
        {&names.check_loop, "_check_loop"}, {&names.close, "close"},
        {&names.close_if_idle, "_close_if_idle"}, {&names.error, "error"},
        {&names.fail, "_fail"}, {&names.feed, "feed"}, {&names.finish, "finish"},
        {&names.gi_yieldfrom, "gi_yieldfrom"}, {&names.info, "info"}, {&names.name, "name"},
        {&names.ndim, "ndim"}, {&names.output, "output"}, {&names.outputs, "outputs"},
        {&names.reason, "reason"}, {&names.resume_all, "resume_all"}, {&names.role, "role"},
        {&names.running, "running"},
        {&names.source_over, "_source_over"}, {&names.throw_, "throw"},
        {&names.tolist, "tolist"}, {&names.wait, "wait"},
        {&names.wait_and_poll, "_wait_and_poll"}};
    for (size_t n = 0; n < sizeof table / sizeof *table; n++)
        if ((*table[n].place = PyUnicode_InternFromString(table[n].name)) == NULL)
            return -1;
    return 0;
}

static PyMethodDef functions[] = {
    {"claim", claim, METH_NOARGS, "Whether the caller may use this module."},
    {"bind", bind, METH_VARARGS, "Give to the module what it uses of the package."},
    {"set_turns", set_turns, METH_VARARGS, "Set how much is done in one turn of an event loop."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "batchstream._native.extension",
    .m_doc = "The native core: what _core, _handoff, _pumps and _streams say in Python, in C.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_extension(void)
{
    const struct { const char *name; PyTypeObject *type; } types[] = {
        {"Buffer", &BufferType}, {"Core", &CoreType}, {"Role", &RoleType},
        {"StreamReader", &ReaderType}, {"AsyncStreamReader", &AsyncReaderType},
        {"AsyncioWaiter", &WaiterType}, {"Receive", &ReceiveType}};
    PyObject *module = intern_names() < 0 ? NULL : PyModule_Create(&definition);
    for (size_t n = 0; module != NULL && n < sizeof types / sizeof *types; n++)
        if (PyType_Ready(types[n].type) < 0 ||
            PyModule_AddObjectRef(module, types[n].name, (PyObject *)types[n].type) < 0)
            Py_CLEAR(module);
    return module;
}
