/* What a step gives to which slot, and which slots finish in it.

   The same as Demultiplexer in _core/demultiplexer.py, where the rules are explained. Most steps are
   plain: one output for each live slot. `hand_out_plain` checks a whole step before it gives out
   anything, and runs no code of anybody's. Of every other step `take_step` makes a Draft, element by
   element; the draft then becomes a Delivery, or goes to the buffers. */

#include "native.h"

typedef struct {
    Py_ssize_t given; /* outputs of the present or the last occupant */
    Py_ssize_t limit;
    char live;
} Slot;

struct Core {
    PyObject_HEAD
    Py_ssize_t size, live_count, steps, dropped, past_outputs, finished[REASONS];
    Slot *slots;
    Py_ssize_t *initial_limits;
    int *live_slots;         /* in order, while `live` is set */
    PyObject *live;          /* the same as a tuple; NULL after a change */
    const char *over;        /* "ended" or "failed"; NULL: the batch is running */
    PyObject *failure;       /* what it has failed with */
    PyObject *eos, *is_eos;
    PyObject *ids;           /* where token ids are all that is_eos looks for */
    PyTypeObject *array_type; /* that of the last step that was an array */
    int include_eos, require_eos;
    char most;               /* whether the last step gave a slot more than one output */
};

/* Slots, each with what it is given: an output, or its end. */
typedef struct {
    struct Pair { Py_ssize_t slot; PyObject *value; } *pairs;
    Py_ssize_t count, capacity;
} Pairs;

/* What a step gives, in the making. */
typedef struct {
    Pairs outputs, ends;
} Draft;

static int add_pair(Pairs *pairs, Py_ssize_t slot, PyObject *value)
{
    if (pairs->count == pairs->capacity) {
        Py_ssize_t capacity = pairs->capacity ? 2 * pairs->capacity : 8;
        struct Pair *grown = PyMem_Resize(pairs->pairs, struct Pair, capacity);
        if (grown == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        pairs->pairs = grown;
        pairs->capacity = capacity;
    }
    pairs->pairs[pairs->count++] = (struct Pair){slot, Py_NewRef(value)};
    return 0;
}

static void drop_draft(Draft *draft)
{
    for (Py_ssize_t n = 0; n < draft->outputs.count; n++)
        Py_DECREF(draft->outputs.pairs[n].value);
    for (Py_ssize_t n = 0; n < draft->ends.count; n++)
        Py_DECREF(draft->ends.pairs[n].value);
    PyMem_Free(draft->outputs.pairs);
    PyMem_Free(draft->ends.pairs);
}

/* Make a Delivery of a draft, unless what made it has failed, and drop the draft. */
static PyObject *deliver_draft(Draft *draft, int failed)
{
    PyObject *delivery = NULL;
    PyObject *slots = PyList_New(0), *values = PyList_New(0), *ends = PyList_New(0);
    failed = failed || slots == NULL || values == NULL || ends == NULL;
    for (Py_ssize_t n = 0; !failed && n < draft->outputs.count; n++) {
        PyObject *slot = PyLong_FromSsize_t(draft->outputs.pairs[n].slot);
        failed = slot == NULL || PyList_Append(slots, slot) < 0 ||
                 PyList_Append(values, draft->outputs.pairs[n].value) < 0;
        Py_XDECREF(slot);
    }
    for (Py_ssize_t n = 0; !failed && n < draft->ends.count; n++) {
        PyObject *pair = Py_BuildValue("nO", draft->ends.pairs[n].slot, draft->ends.pairs[n].value);
        failed = pair == NULL || PyList_Append(ends, pair) < 0;
        Py_XDECREF(pair);
    }
    if (!failed)
        delivery = PyObject_CallFunctionObjArgs(imported.delivery, slots, values, ends, NULL);
    Py_XDECREF(slots);
    Py_XDECREF(values);
    Py_XDECREF(ends);
    drop_draft(draft);
    return delivery;
}

/* ---- slots */

PyObject *core_live(Core *core)
{
    if (core->live == NULL) {
        PyObject *live = PyTuple_New(core->live_count); /* may start a collection */
        Py_ssize_t n = 0;
        for (Py_ssize_t slot = 0; live != NULL && slot < core->size; slot++) {
            if (!core->slots[slot].live)
                continue;
            PyObject *number = PyLong_FromSsize_t(slot);
            if (number == NULL)
                Py_CLEAR(live);
            else {
                core->live_slots[n] = (int)slot;
                PyTuple_SET_ITEM(live, n++, number);
            }
        }
        if (live == NULL)
            return NULL;
        Py_XSETREF(core->live, live);
    }
    return Py_NewRef(core->live);
}

int core_has_live(Core *core)
{
    return core->live_count > 0;
}

static int refuse_if_over(Core *core, const char *event)
{
    if (core->over == NULL)
        return 0;
    PyObject *error = PyObject_CallFunction(imported.batch_over_error, "ssO", event, core->over,
                                            core->failure ? core->failure : Py_None);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return -1;
}

static int give(Core *core, Draft *draft, Py_ssize_t slot, PyObject *output)
{
    core->slots[slot].given++;
    return add_pair(&draft->outputs, slot, output);
}

/* Finish a live slot; `info` and `error` may be NULL. */
static int finish(Core *core, Draft *draft, Py_ssize_t slot, enum Reason reason, PyObject *info,
                  PyObject *error)
{
    PyObject *given = PyLong_FromSsize_t(core->slots[slot].given);
    PyObject *end = given == NULL ? NULL
        : PyObject_CallFunctionObjArgs(imported.stream_end, imported.reasons[reason], given,
                                       info ? info : Py_None, error ? error : Py_None, NULL);
    int failed = end == NULL || add_pair(&draft->ends, slot, end) < 0;
    Py_XDECREF(given);
    Py_XDECREF(end);
    if (failed)
        return -1;
    core->slots[slot].live = 0;
    core->live_count--;
    core->finished[reason]++;
    Py_CLEAR(core->live);
    return 0;
}

static int finish_all(Core *core, Draft *draft, enum Reason reason, PyObject *error)
{
    for (Py_ssize_t slot = 0; slot < core->size; slot++)
        if (core->slots[slot].live && finish(core, draft, slot, reason, NULL, error) < 0)
            return -1;
    return 0;
}

/* ---- elements of a step */

static int is_marker(PyObject *element)
{
    PyTypeObject *type = Py_TYPE(element);
    return type == imported.signal || type == imported.last || type == imported.end ||
           type == imported.fail || type == imported.many;
}

/* How many outputs an element for a finished slot holds; -1 with an exception. */
static Py_ssize_t count_outputs(Core *core, PyObject *element)
{
    PyTypeObject *type = Py_TYPE(element);
    if (element == core->eos || type == imported.signal || type == imported.end ||
        type == imported.fail)
        return 0;
    if (type != imported.many)
        return 1;
    PyObject *outputs = PyObject_GetAttr(element, names.outputs); /* a tuple: see Many */
    Py_ssize_t count = outputs == NULL ? -1 : 0;
    for (Py_ssize_t n = 0; count >= 0 && n < PyTuple_GET_SIZE(outputs); n++) {
        Py_ssize_t more = count_outputs(core, PyTuple_GET_ITEM(outputs, n));
        count = more < 0 ? -1 : count + more;
    }
    Py_XDECREF(outputs);
    return count;
}

static int drop(Core *core, PyObject *element)
{
    Py_ssize_t count = count_outputs(core, element);
    if (count > 0)
        core->dropped += count;
    return count < 0 ? -1 : 0;
}

/* Ask is_eos of an output. 1: it ends its slot; `error`, if set, is what is_eos has raised. */
static int ends_slot(Core *core, PyObject *output, PyObject **error)
{
    *error = NULL;
    if (core->is_eos == NULL)
        return 0;
    if (core->ids != NULL && PyLong_CheckExact(output))
        return PySet_Contains(core->ids, output);
    PyObject *answer = PyObject_CallOneArg(core->is_eos, output);
    int yes = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    if (yes < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        *error = take_exception();
        return *error == NULL ? -1 : 1;
    }
    return yes;
}

static int take_output(Core *core, Draft *draft, Py_ssize_t slot, PyObject *output)
{
    PyObject *error;
    int ends = ends_slot(core, output, &error);
    if (ends < 0)
        return -1;
    if (error != NULL) {
        int result = finish(core, draft, slot, ERROR, NULL, error);
        Py_DECREF(error);
        return result;
    }
    if (ends)
        return core->include_eos && give(core, draft, slot, output) < 0
                   ? -1 : finish(core, draft, slot, EOS, NULL, NULL);
    if (give(core, draft, slot, output) < 0)
        return -1;
    return core->slots[slot].given < core->slots[slot].limit
               ? 0 : finish(core, draft, slot, LENGTH, NULL, NULL);
}

/* Last and End: finish the slot for the reason that they give. */
static int take_end(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    PyObject *reason = PyObject_GetAttr(element, names.reason);
    PyObject *info = PyObject_GetAttr(element, names.info);
    int which = 0, failed = reason == NULL || info == NULL;
    while (!failed && which < REASONS - 1 && reason != imported.reasons[which])
        which++;
    if (!failed)
        failed = finish(core, draft, slot, (enum Reason)which, info, NULL) < 0;
    Py_XDECREF(reason);
    Py_XDECREF(info);
    return failed ? -1 : 0;
}

static int take(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    PyTypeObject *type = Py_TYPE(element);
    if (!core->slots[slot].live) /* it has finished within this Many */
        return drop(core, element);
    if (element == core->eos || element == imported.eos)
        return finish(core, draft, slot, EOS, NULL, NULL);
    if (element == imported.skip)
        return 0;
    if (type == imported.end)
        return take_end(core, draft, slot, element);
    if (type != imported.last && type != imported.fail && type != imported.many)
        return take_output(core, draft, slot, element);
    PyObject *name = type == imported.last ? names.output
                   : type == imported.fail ? names.error : names.outputs;
    PyObject *held = PyObject_GetAttr(element, name);
    if (held == NULL)
        return -1;
    int failed;
    if (type == imported.last)
        failed = give(core, draft, slot, held) < 0 || take_end(core, draft, slot, element) < 0;
    else if (type == imported.fail)
        failed = finish(core, draft, slot, ERROR, NULL, held) < 0;
    else {
        failed = 0;
        core->most = 1;
        for (Py_ssize_t n = 0; !failed && n < PyTuple_GET_SIZE(held); n++)
            failed = take(core, draft, slot, PyTuple_GET_ITEM(held, n)) < 0;
    }
    Py_DECREF(held);
    return failed ? -1 : 0;
}

/* ---- steps */

static int has_one_dimension(PyObject *array)
{
    PyObject *dimensions = PyObject_GetAttr(array, names.ndim);
    int one = dimensions != NULL && PyLong_CheckExact(dimensions) && PyLong_AsLong(dimensions) == 1;
    Py_XDECREF(dimensions);
    return one;
}

/* Whether the elements can be taken as they are. Runs no code. */
static int is_read(Core *core, PyObject *elements)
{
    if (PyList_CheckExact(elements) || PyTuple_CheckExact(elements))
        return PySequence_Fast_GET_SIZE(elements) == core->size;
    if (!PyDict_CheckExact(elements))
        return 0;
    PyObject *key, *element;
    for (Py_ssize_t n = 0; PyDict_Next(elements, &n, &key, &element);) {
        int overflow;
        long slot = PyLong_CheckExact(key) ? PyLong_AsLongAndOverflow(key, &overflow) : -1;
        if (slot < 0 || slot >= core->size)
            return 0;
    }
    return 1;
}

/* The elements of a step: a list or tuple as wide as the batch, or a dict by slot. */
static PyObject *read_step(Core *core, PyObject *step)
{
    if (is_read(core, step))
        return Py_NewRef(step);
    PyObject *elements = NULL;
    if (Py_TYPE(step) == core->array_type && has_one_dimension(step))
        elements = PyObject_CallMethodNoArgs(step, names.tolist);
    if (elements != NULL && is_read(core, elements))
        return elements;
    Py_XDECREF(elements);
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyErr_Clear(); /* read once more, in Python, which says what is wrong with it */
    elements = PyObject_CallFunction(imported.read_step, "Onn", step, core->size, core->steps);
    if (elements != NULL && !PyDict_Check(step)) {
        if (has_one_dimension(step))
            Py_XSETREF(core->array_type, (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(step)));
        PyErr_Clear();
    }
    return elements;
}

/* The element of a live slot in a plain step, or NULL without an exception. Runs no code. */
static inline PyObject *plain_element(Core *core, PyObject *elements, Py_ssize_t n)
{
    if (PyList_CheckExact(elements))
        return PyList_GET_ITEM(elements, core->live_slots[n]);
    if (PyTuple_CheckExact(elements))
        return PyTuple_GET_ITEM(elements, core->live_slots[n]);
    /* Its keys were read: they are exact integers. */
    return PyDict_GetItemWithError(elements, PyTuple_GET_ITEM(core->live, n));
}

static inline int is_plain(Core *core, PyObject *element, Slot *slot)
{
    return element != NULL && element != core->eos && !is_marker(element) &&
           slot->given + 1 < slot->limit &&
           (core->ids == NULL ||
            (PyLong_CheckExact(element) && PySet_Contains(core->ids, element) == 0));
}

/* Count the outputs of a step for slots that have finished. */
static int drop_late(Core *core, PyObject *elements)
{
    PyObject *key, *element;
    int failed = 0;
    if (PyDict_CheckExact(elements))
        for (Py_ssize_t n = 0; !failed && PyDict_Next(elements, &n, &key, &element);)
            failed = !core->slots[PyLong_AsSsize_t(key)].live && drop(core, element) < 0;
    else if (core->live_count < core->size)
        for (Py_ssize_t slot = 0; !failed && slot < core->size; slot++)
            failed = !core->slots[slot].live &&
                     drop(core, PySequence_Fast_GET_ITEM(elements, slot)) < 0;
    return failed ? -1 : 0;
}

/* Hand out a plain step: to the buffers by slot, or into `values`, a new tuple, if that is given.

   1: it was one. 0: it was none, and nothing was handed out. Runs no code before all is out. */
static int hand_out_plain(Core *core, PyObject *elements, PyObject *buffers, PyObject *values)
{
    Py_ssize_t count = core->live_count;
    if (core->is_eos != NULL && core->ids == NULL)
        return 0; /* a function has to be asked */
    if (!is_read(core, elements) || (PyDict_CheckExact(elements) && PyDict_GET_SIZE(elements) != count))
        return 0;
    for (Py_ssize_t n = 0; n < count; n++) {
        int slot = core->live_slots[n];
        if (!is_plain(core, plain_element(core, elements, n), &core->slots[slot]))
            return 0;
        if (values == NULL && buffer_reserve((Buffer *)PyList_GET_ITEM(buffers, slot), 1) < 0)
            return -1;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        int slot = core->live_slots[n];
        PyObject *element = plain_element(core, elements, n);
        core->slots[slot].given++;
        if (values == NULL)
            buffer_append((Buffer *)PyList_GET_ITEM(buffers, slot), element);
        else
            PyTuple_SET_ITEM(values, n, Py_NewRef(element));
    }
    return drop_late(core, elements) < 0 ? -1 : 1;
}

/* Take a step that is not plain, element by element. */
static int take_elements(Core *core, PyObject *elements, PyObject *live, Draft *draft)
{
    /* In a copy: is_eos may change the step, or receive from this very batch. */
    int by_slot = PyDict_CheckExact(elements);
    PyObject *copy = by_slot ? PyDict_Copy(elements) : PySequence_List(elements);
    if (copy == NULL)
        return -1;
    int failed = drop_late(core, copy) < 0;
    if (!failed && !is_read(core, copy)) {
        PyErr_SetString(PyExc_RuntimeError, "the step has changed while it was read");
        failed = 1;
    }
    for (Py_ssize_t n = 0; !failed && n < PyTuple_GET_SIZE(live); n++) {
        PyObject *number = PyTuple_GET_ITEM(live, n);
        Py_ssize_t slot = PyLong_AsSsize_t(number);
        PyObject *element = by_slot ? PyDict_GetItemWithError(copy, number)
                                    : PyList_GET_ITEM(copy, slot);
        failed = element != NULL && take(core, draft, slot, element) < 0;
    }
    Py_DECREF(copy);
    return failed ? -1 : 0;
}

static int fail_batch(Core *core, Draft *draft, PyObject *error)
{
    core->over = "failed";
    Py_XSETREF(core->failure, Py_NewRef(error));
    return finish_all(core, draft, ERROR, error);
}

/* Take any step. 1: it was plain, and was handed out. 0: the draft has it. */
static int take_step(Core *core, PyObject *step, PyObject *buffers, PyObject *values, Draft *draft)
{
    *draft = (Draft){0};
    if (refuse_if_over(core, "feed") < 0)
        return -1;
    core->most = 0;
    PyObject *live = core_live(core); /* held, as `live_slots` is valid while it is the same */
    if (live == NULL)
        return -1;
    int plain = 0;
    PyObject *elements = read_step(core, step);
    if (elements == NULL && !PyErr_ExceptionMatches(imported.step_error))
        plain = -1;
    else {
        core->steps++;
        if (elements == NULL) {
            PyObject *error = take_exception();
            plain = error == NULL || fail_batch(core, draft, error) < 0 ? -1 : 0;
            Py_XDECREF(error);
        } else {
            plain = live == core->live ? hand_out_plain(core, elements, buffers, values) : 0;
            if (plain == 0)
                plain = take_elements(core, elements, live, draft);
        }
    }
    Py_XDECREF(elements);
    Py_DECREF(live);
    return plain;
}

/* Give to the buffers what a draft holds, and return a list of those that got something or ended. */
static PyObject *hand_out_draft(Draft *draft, PyObject *buffers, PyObject *live_buffers)
{
    PyObject *touched = PyList_New(0);
    int failed = touched == NULL;
    for (Py_ssize_t n = 0; !failed && n < draft->outputs.count; n++) {
        Buffer *buffer = (Buffer *)PyList_GET_ITEM(buffers, draft->outputs.pairs[n].slot);
        failed = PyList_Append(touched, (PyObject *)buffer) < 0 || buffer_reserve(buffer, 1) < 0;
        if (!failed)
            buffer_append(buffer, draft->outputs.pairs[n].value);
    }
    /* Behind the outputs: a consumer asks for the end before it finds no output. */
    for (Py_ssize_t n = 0; !failed && n < draft->ends.count; n++) {
        PyObject *buffer = PyList_GET_ITEM(buffers, draft->ends.pairs[n].slot);
        failed = PyList_Append(touched, buffer) < 0 ||
                 buffer_finish((Buffer *)buffer, draft->ends.pairs[n].value) < 0 ||
                 PySet_Discard(live_buffers, buffer) < 0;
    }
    if (failed)
        Py_CLEAR(touched);
    return touched;
}

static PyObject *live_of(Core *core, PyObject *buffers)
{
    PyObject *touched = PyList_New(core->live_count);
    for (Py_ssize_t n = 0; touched != NULL && n < core->live_count; n++)
        PyList_SET_ITEM(touched, n, Py_NewRef(PyList_GET_ITEM(buffers, core->live_slots[n])));
    return touched;
}

/* Whether these are as many native buffers as there are slots. */
static int check_buffers(Core *core, PyObject *buffers, PyObject *live_buffers)
{
    int fit = PyList_CheckExact(buffers) && PyList_GET_SIZE(buffers) == core->size &&
              PySet_CheckExact(live_buffers);
    for (Py_ssize_t slot = 0; fit && slot < core->size; slot++)
        fit = PyObject_TypeCheck(PyList_GET_ITEM(buffers, slot), &BufferType);
    if (!fit)
        PyErr_Format(PyExc_TypeError, "take needs a list of %zd buffers, and the set of the live",
                     core->size);
    return fit ? 0 : -1;
}

int core_take(Core *core, PyObject *step, PyObject *buffers, PyObject *live_buffers,
              PyObject **touched)
{
    Draft draft;
    PyObject *list = NULL;
    if (check_buffers(core, buffers, live_buffers) < 0)
        return -1;
    int plain = take_step(core, step, buffers, NULL, &draft);
    if (plain == 1 && touched != NULL)
        list = live_of(core, buffers);
    else if (plain == 0)
        list = hand_out_draft(&draft, buffers, live_buffers);
    drop_draft(&draft);
    int failed = plain < 0 || (list == NULL && (plain == 0 || touched != NULL));
    if (touched != NULL)
        *touched = list;
    else
        Py_XDECREF(list);
    return failed ? -1 : 0;
}

/* ---- as Python sees it */

static PyObject *method_take(Core *core, PyObject *const *args, Py_ssize_t count)
{
    PyObject *touched = NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "take takes a step, the buffers and the live buffers");
        return NULL;
    }
    return core_take(core, args[0], args[1], args[2], &touched) < 0 ? NULL : touched;
}

static PyObject *method_feed(Core *core, PyObject *step)
{
    Draft draft;
    PyObject *live = core_live(core), *delivery = NULL;
    /* Before the step is looked at: making it may start a collection, and that run code. */
    PyObject *values = live == NULL ? NULL : PyTuple_New(core->live_count);
    int plain = values == NULL ? -1 : take_step(core, step, NULL, values, &draft);
    if (plain == 1)
        delivery = PyObject_CallFunctionObjArgs(imported.delivery, live, values, NULL);
    else if (values != NULL)
        delivery = deliver_draft(&draft, plain < 0);
    Py_XDECREF(live);
    Py_XDECREF(values);
    return delivery;
}

static PyObject *method_finish(Core *core, PyObject *Py_UNUSED(none))
{
    Draft draft = {0};
    if (refuse_if_over(core, "finish") < 0)
        return NULL;
    core->over = "ended";
    int failed = !core->require_eos && finish_all(core, &draft, EXHAUSTED, NULL) < 0;
    for (Py_ssize_t slot = 0; !failed && slot < core->size; slot++) {
        if (!core->slots[slot].live)
            continue;
        PyObject *error = PyObject_CallFunction(imported.missing_eos_error, "nn", slot,
                                                core->slots[slot].given);
        failed = error == NULL || finish(core, &draft, slot, ERROR, NULL, error) < 0;
        Py_XDECREF(error);
    }
    return deliver_draft(&draft, failed);
}

static PyObject *method_fail(Core *core, PyObject *error)
{
    Draft draft = {0};
    if (refuse_if_over(core, "fail") < 0)
        return NULL;
    int failed = fail_batch(core, &draft, error) < 0;
    return deliver_draft(&draft, failed);
}

/* The number of a slot that exists; -1 with an exception. */
static Py_ssize_t slot_of(Core *core, PyObject *number)
{
    Py_ssize_t slot = PyNumber_AsSsize_t(number, NULL);
    if (slot == -1 && PyErr_Occurred())
        return -1;
    if (slot >= 0 && slot < core->size)
        return slot;
    PyObject *error = PyObject_CallFunction(imported.no_slot_error, "On", number, core->size);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return -1;
}

static PyObject *method_cancel(Core *core, PyObject *number)
{
    Draft draft = {0};
    Py_ssize_t slot = slot_of(core, number);
    if (slot < 0)
        return NULL;
    int failed = core->slots[slot].live && finish(core, &draft, slot, CANCELLED, NULL, NULL) < 0;
    return deliver_draft(&draft, failed);
}

static PyObject *method_given(Core *core, PyObject *number)
{
    Py_ssize_t slot = slot_of(core, number);
    return slot < 0 ? NULL : PyLong_FromSsize_t(core->slots[slot].given);
}

static PyObject *method_open(Core *core, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"slot", "max_outputs", NULL};
    PyObject *number, *limit = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|$O", words, &number, &limit))
        return NULL;
    Py_ssize_t slot = slot_of(core, number);
    if (slot < 0)
        return NULL;
    Py_ssize_t most = core->initial_limits[slot];
    if (limit != Py_None) {
        PyObject *checked = PyObject_CallFunctionObjArgs(imported.check_limit, limit, NULL);
        most = checked == NULL ? -1 : PyLong_AsSsize_t(checked);
        Py_XDECREF(checked);
        if (most < 0)
            return NULL;
    }
    if (refuse_if_over(core, "open") < 0)
        return NULL;
    Slot *opened = &core->slots[slot];
    if (opened->live) {
        PyErr_Format(PyExc_ValueError, "slot %zd is live, only a finished slot can be opened",
                     slot);
        return NULL;
    }
    core->past_outputs += opened->given;
    *opened = (Slot){.given = 0, .limit = most, .live = 1};
    core->live_count++;
    Py_CLEAR(core->live);
    Py_RETURN_NONE;
}

static Py_ssize_t outputs_of(Core *core)
{
    Py_ssize_t outputs = core->past_outputs;
    for (Py_ssize_t slot = 0; slot < core->size; slot++)
        outputs += core->slots[slot].given;
    return outputs;
}

static PyObject *method_statistics(Core *core, PyObject *Py_UNUSED(none))
{
    PyObject *finished = PyDict_New();
    Py_ssize_t opened = core->live_count;
    int failed = finished == NULL;
    for (int reason = 0; reason < REASONS && !failed; reason++) {
        opened += core->finished[reason];
        PyObject *count = PyLong_FromSsize_t(core->finished[reason]);
        failed = count == NULL ||
                 (core->finished[reason] &&
                  PyDict_SetItem(finished, imported.reasons[reason], count) < 0);
        Py_XDECREF(count);
    }
    PyObject *statistics = failed ? NULL
        : PyObject_CallFunction(imported.statistics, "nnnnnO", core->steps, outputs_of(core),
                                core->dropped, opened, core->live_count, finished);
    Py_XDECREF(finished);
    return statistics;
}

static PyObject *get_running(Core *core, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(core->over == NULL);
}

static PyObject *get_has_live(Core *core, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(core->live_count > 0);
}

static PyObject *get_live(Core *core, void *Py_UNUSED(closure))
{
    return core_live(core);
}

static PyObject *core_repr(Core *core)
{
    return PyUnicode_FromFormat("<Demultiplexer %s, %zd of %zd slots live, %zd steps>",
                                core->over ? core->over : "running", core->live_count, core->size,
                                core->steps);
}

static int core_init(Core *core, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"limits", "eos", "is_eos", "ids", "include_eos", "require_eos",
                            "vacant", NULL};
    PyObject *limits, *eos, *is_eos, *ids;
    int vacant;
    if (core->slots != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a core is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOppp", words, &PyList_Type, &limits, &eos,
                                     &is_eos, &ids, &core->include_eos, &core->require_eos,
                                     &vacant))
        return -1;
    Py_ssize_t size = PyList_GET_SIZE(limits);
    core->slots = PyMem_New(Slot, size + 1);
    core->initial_limits = PyMem_New(Py_ssize_t, size + 1);
    core->live_slots = PyMem_New(int, size + 1);
    if (core->slots == NULL || core->initial_limits == NULL || core->live_slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t slot = 0; slot < size; slot++) {
        Py_ssize_t limit = PyLong_AsSsize_t(PyList_GET_ITEM(limits, slot));
        if (limit == -1 && PyErr_Occurred())
            return -1;
        core->initial_limits[slot] = limit;
        core->slots[slot] = (Slot){.limit = limit, .live = !vacant};
    }
    core->eos = Py_NewRef(eos);
    core->is_eos = is_eos == Py_None ? NULL : Py_NewRef(is_eos);
    core->ids = ids == Py_None ? NULL : Py_NewRef(ids);
    core->size = size; /* last: what is no core has no slots */
    core->live_count = vacant ? 0 : size;
    return 0;
}

static int core_traverse(Core *core, visitproc visit, void *arg)
{
    Py_VISIT(core->live);
    Py_VISIT(core->failure);
    Py_VISIT(core->eos);
    Py_VISIT(core->is_eos);
    Py_VISIT(core->ids);
    Py_VISIT(core->array_type);
    return 0;
}

static int core_clear(Core *core)
{
    Py_CLEAR(core->live);
    Py_CLEAR(core->failure);
    Py_CLEAR(core->eos);
    Py_CLEAR(core->is_eos);
    Py_CLEAR(core->ids);
    Py_CLEAR(core->array_type);
    return 0;
}

static void core_dealloc(Core *core)
{
    PyObject_GC_UnTrack(core);
    core_clear(core);
    PyMem_Free(core->slots);
    PyMem_Free(core->initial_limits);
    PyMem_Free(core->live_slots);
    Py_TYPE(core)->tp_free((PyObject *)core);
}

static PyMethodDef core_methods[] = {
    {"take", (PyCFunction)(void (*)(void))method_take, METH_FASTCALL, NULL},
    {"feed", (PyCFunction)method_feed, METH_O, NULL},
    {"finish", (PyCFunction)method_finish, METH_NOARGS, NULL},
    {"fail", (PyCFunction)method_fail, METH_O, NULL},
    {"cancel", (PyCFunction)method_cancel, METH_O, NULL},
    {"given", (PyCFunction)method_given, METH_O, NULL},
    {"open", (PyCFunction)(void (*)(void))method_open, METH_VARARGS | METH_KEYWORDS, NULL},
    {"statistics", (PyCFunction)method_statistics, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef core_members[] = {
    {"size", T_PYSSIZET, offsetof(Core, size), READONLY, NULL},
    {"gave_many", T_BOOL, offsetof(Core, most), READONLY, NULL},
    {NULL},
};

static PyGetSetDef core_getset[] = {
    {"live", (getter)get_live, NULL, NULL, NULL},
    {"has_live", (getter)get_has_live, NULL, NULL, NULL},
    {"running", (getter)get_running, NULL, NULL, NULL},
    {NULL},
};

PyTypeObject CoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Core",
    .tp_doc = "Decides, step by step, which output goes to which slot and which have finished.",
    .tp_basicsize = sizeof(Core),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)core_init,
    .tp_dealloc = (destructor)core_dealloc,
    .tp_traverse = (traverseproc)core_traverse,
    .tp_clear = (inquiry)core_clear,
    .tp_repr = (reprfunc)core_repr,
    .tp_methods = core_methods,
    .tp_members = core_members,
    .tp_getset = core_getset,
};
