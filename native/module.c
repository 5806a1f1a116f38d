/* The module: what it imports from the package in Python, and what it offers to it. */

#include "native.h"

Imported imported;
Names names;

PyObject *return_self(PyObject *self)
{
    return Py_NewRef(self);
}

PyObject *take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

void set_exception(PyObject *exception)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exception);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exception)), exception,
                  PyException_GetTraceback(exception));
#endif
}

/* ---- as the module is loaded */

typedef struct {
    const char *name;
    PyObject **place;
} Import;

static int import_from(const char *module_name, const Import *imports)
{
    PyObject *module = PyImport_ImportModule(module_name);
    for (; module != NULL && imports->name != NULL; imports++) {
        *imports->place = PyObject_GetAttrString(module, imports->name);
        if (*imports->place == NULL)
            Py_CLEAR(module);
    }
    Py_XDECREF(module);
    return module == NULL ? -1 : 0;
}

static int import_all(void)
{
    PyObject *finish_reason = NULL;
    const Import records[] = {
        {"StreamEnd", &imported.stream_end}, {"Delivery", &imported.delivery},
        {"Statistics", &imported.statistics}, {"FinishReason", &finish_reason}, {NULL, NULL}};
    const Import markers[] = {
        {"EOS", &imported.eos}, {"SKIP", &imported.skip},
        {"Signal", (PyObject **)&imported.signal}, {"Last", (PyObject **)&imported.last},
        {"End", (PyObject **)&imported.end}, {"Fail", (PyObject **)&imported.fail},
        {"Many", (PyObject **)&imported.many}, {NULL, NULL}};
    const Import errors[] = {
        {"StepError", &imported.step_error}, {"consumer_error", &imported.consumer_error},
        {"missing_eos_error", &imported.missing_eos_error},
        {"batch_over_error", &imported.batch_over_error},
        {"no_slot_error", &imported.no_slot_error},
        {"concurrent_error", &imported.concurrent_error}, {NULL, NULL}};
    const Import steps[] = {{"read_step", &imported.read_step}, {NULL, NULL}};
    const Import arguments[] = {{"check_limit", &imported.check_limit}, {NULL, NULL}};
    if (import_from("batchstream._core.records", records) < 0 ||
        import_from("batchstream._core.markers", markers) < 0 ||
        import_from("batchstream._core.errors", errors) < 0 ||
        import_from("batchstream._core.steps", steps) < 0 ||
        import_from("batchstream._core.arguments", arguments) < 0)
        return -1;
    static const char *const reasons[] = {"EOS", "LENGTH", "EXHAUSTED", "CANCELLED", "ERROR"};
    for (int reason = 0; reason < REASONS; reason++) {
        imported.reasons[reason] = PyObject_GetAttrString(finish_reason, reasons[reason]);
        if (imported.reasons[reason] == NULL)
            return -1;
    }
    Py_DECREF(finish_reason);
    return 0;
}

static int intern_names(void)
{
    const Import interned[] = {
        {"_apply_departures_if_free", &names.apply_departures_if_free},
        {"_attach", &names.attach}, {"_check_loop", &names.check_loop},
        {"_close_if_idle", &names.close_if_idle}, 
        {"_fail", &names.fail}, {"_source_over", &names.source_over}, {"_wait_and_poll", &names.wait_and_poll},
        {"call_soon", &names.call_soon}, {"close", &names.close}, {"context", &names.context},
        {"error", &names.error}, {"finish", &names.finish},
        {"gi_yieldfrom", &names.gi_yieldfrom}, {"info", &names.info}, {"name", &names.name}, {"ndim", &names.ndim},
        {"output", &names.output}, {"outputs", &names.outputs}, {"reason", &names.reason},
        {"resume_all", &names.resume_all}, {"role", &names.role}, {"throw", &names.throw_},
        {"tolist", &names.tolist}, {"wait", &names.wait}, {NULL, NULL}};
    for (const Import *name = interned; name->name != NULL; name++) {
        *name->place = PyUnicode_InternFromString(name->name);
        if (*name->place == NULL)
            return -1;
    }
    return 0;
}

/* For tests: how many outputs a receive takes, and how many waiters are resumed, in one turn. */
static PyObject *set_turns(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "bi", &outputs_per_turn, &waiters_per_turn))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {{"set_turns", set_turns, METH_VARARGS, NULL}, {NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "batchstream._native.extension",
    .m_doc = "The native core: what _core, _handoff and _streams say in Python, in C.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_extension(void)
{
    static const struct { const char *name; PyTypeObject *type; } types[] = {
        {"Buffer", &BufferType}, {"Core", &CoreType}, {"Role", &PullType},
        {"StreamReader", &ReaderType}, {"AsyncStreamReader", &AsyncReaderType},
        {"AsyncioWaiter", &WaiterType}, {"Receive", &ReceiveType}};
    if (intern_names() < 0 || import_all() < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    for (size_t n = 0; module != NULL && n < sizeof types / sizeof *types; n++)
        if (PyType_Ready(types[n].type) < 0 ||
            PyModule_AddObjectRef(module, types[n].name, (PyObject *)types[n].type) < 0)
            Py_CLEAR(module);
    return module;
}
