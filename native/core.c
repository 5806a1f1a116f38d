/* What a step gives to which slot, and which slots finish in it.

   What Demultiplexer does with a step in _core/demultiplexer.py, where the rules are explained; the
   rest of it is Python here too. Most steps are plain: one output for each live slot. For these,
   `hand_out_plain` checks the whole step before it gives out anything, and runs no code. Of every
   other step `take_elements` makes a draft, element by element, which then becomes a Delivery, or
   goes to the buffers. */

#include "native.h"

typedef struct {
    Py_ssize_t given; /* outputs of the present or the last occupant */
    Py_ssize_t limit;
    char live;
} Slot;

struct Core {
    PyObject_HEAD
    Py_ssize_t size, live_count, steps, dropped, past_outputs;
    Slot *slots;
    int *live_slots;          /* in order, while `live` is set */
    PyObject *live;           /* the same as a tuple; NULL after a change */
    PyObject *state;          /* "running", or what Python says besides */
    PyObject *finished;       /* a dict: how many slots have finished for which reason */
    PyObject *eos, *is_eos;
    PyObject *ids;            /* where token ids are all that is_eos looks for */
    PyObject *predicates;     /* a list: the is_eos of each slot; NULL as long as all have that one */
    PyObject *matched;        /* a set, not empty once is_eos was true of an output */
    PyObject *requeued;       /* a dict: the slots that a step has given back; else it may not */
    PyTypeObject *array_type; /* that of the last step that was an array */
    char include_eos;
    char asks;                /* whether a function is asked about outputs, not ids alone */
    char gave_many;           /* whether the last step may have given a slot more than one output */
};

/* What became of a step. */
enum Outcome { FAILED = -1, DRAFTED, HANDED_OUT };

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

static PyObject *deliver_draft(Draft *draft)
{
    PyObject *delivery = NULL;
    PyObject *slots = PyList_New(0), *values = PyList_New(0), *ends = PyList_New(0);
    int failed = slots == NULL || values == NULL || ends == NULL;
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
        delivery = PyObject_CallFunctionObjArgs(given.delivery, slots, values, ends, NULL);
    Py_XDECREF(slots);
    Py_XDECREF(values);
    Py_XDECREF(ends);
    return delivery;
}

/* ---- slots */

PyObject *core_live(Core *core)
{
    if (core->live != NULL)
        return Py_NewRef(core->live);
    Py_ssize_t count = core->live_count, n = 0;
    PyObject *live = PyTuple_New(count); /* may start a collection, and that run code */
    for (Py_ssize_t slot = 0; live != NULL && slot < core->size; slot++) {
        if (!core->slots[slot].live)
            continue;
        PyObject *number = n < count ? PyLong_FromSsize_t(slot) : NULL;
        if (number == NULL)
            Py_CLEAR(live);
        else {
            core->live_slots[n] = (int)slot;
            PyTuple_SET_ITEM(live, n++, number);
        }
    }
    if (live == NULL)
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    core->live = Py_NewRef(live);
    return live;
}

static int give(Core *core, Draft *draft, Py_ssize_t slot, PyObject *output)
{
    core->slots[slot].given++;
    return add_pair(&draft->outputs, slot, output);
}

static int count_finished(Core *core, PyObject *reason)
{
    PyObject *before = PyDict_GetItemWithError(core->finished, reason);
    if (before == NULL && PyErr_Occurred())
        return -1;
    PyObject *count = PyLong_FromSsize_t(before == NULL ? 1 : PyLong_AsSsize_t(before) + 1);
    int failed = count == NULL || PyDict_SetItem(core->finished, reason, count) < 0;
    Py_XDECREF(count);
    return failed ? -1 : 0;
}

/* End a slot that is live or was given back, and return its StreamEnd; `info` and `error` may be NULL. */
static PyObject *end_slot(Core *core, Py_ssize_t slot, PyObject *reason, PyObject *info,
                          PyObject *error)
{
    PyObject *outputs = PyLong_FromSsize_t(core->slots[slot].given);
    PyObject *end = outputs == NULL ? NULL
        : PyObject_CallFunctionObjArgs(given.stream_end, reason, outputs, info ? info : Py_None,
                                       error ? error : Py_None, NULL);
    Py_XDECREF(outputs);
    if (end == NULL || count_finished(core, reason) < 0) {
        Py_XDECREF(end);
        return NULL;
    }
    core->live_count -= core->slots[slot].live;
    core->slots[slot].live = 0;
    Py_CLEAR(core->live);
    return end;
}

static int finish(Core *core, Draft *draft, Py_ssize_t slot, PyObject *reason, PyObject *info,
                  PyObject *error)
{
    PyObject *end = end_slot(core, slot, reason, info, error);
    int failed = end == NULL || add_pair(&draft->ends, slot, end) < 0;
    Py_XDECREF(end);
    return failed ? -1 : 0;
}

/* ---- elements of a step */

static int is_marker(PyObject *element)
{
    PyObject *type = (PyObject *)Py_TYPE(element);
    return type == given.signal || type == given.last || type == given.end || type == given.fail ||
           type == given.many || type == given.requeue;
}

/* Whether an element is the class of a marker, which was not called. */
static int is_marker_class(PyObject *element)
{
    return PyType_CheckExact(element) && (element == given.last || element == given.end ||
                                          element == given.fail || element == given.many ||
                                          element == given.requeue);
}

/* The outputs within a Many, as a tuple. */
static PyObject *outputs_of(PyObject *many)
{
    PyObject *outputs = PyObject_GetAttr(many, names.outputs);
    if (outputs != NULL && !PyTuple_CheckExact(outputs)) { /* it was tampered with */
        PyErr_SetString(PyExc_TypeError, "the outputs of Many are no tuple");
        Py_CLEAR(outputs);
    }
    return outputs;
}

/* How many outputs an element for a finished slot holds; -1 with an exception. */
static Py_ssize_t count_outputs(Core *core, PyObject *element)
{
    PyObject *type = (PyObject *)Py_TYPE(element);
    if (element == core->eos || type == given.signal || type == given.end || type == given.fail ||
        type == given.requeue)
        return 0;
    if (type != given.many)
        return 1;
    if (Py_EnterRecursiveCall(" in Many"))
        return -1;
    PyObject *outputs = outputs_of(element);
    Py_ssize_t count = outputs == NULL ? -1 : 0;
    for (Py_ssize_t n = 0; count >= 0 && n < PyTuple_GET_SIZE(outputs); n++) {
        Py_ssize_t more = count_outputs(core, PyTuple_GET_ITEM(outputs, n));
        count = more < 0 ? -1 : count + more;
    }
    Py_XDECREF(outputs);
    Py_LeaveRecursiveCall();
    return count;
}

static int drop(Core *core, PyObject *element)
{
    Py_ssize_t count = count_outputs(core, element);
    if (count > 0)
        core->dropped += count;
    return count < 0 ? -1 : 0;
}

/* What is asked about the outputs of a slot; NULL without an exception for nothing. */
static PyObject *predicate_of(Core *core, Py_ssize_t slot)
{
    PyObject *own = core->predicates;
    if (own == NULL || slot >= PyList_GET_SIZE(own))
        return core->is_eos;
    return PyList_GET_ITEM(own, slot) == Py_None ? NULL : PyList_GET_ITEM(own, slot);
}

/* Whether what is_eos has returned is true. */
static int is_true(PyObject *answer)
{
    if (answer == Py_True || answer == Py_False || answer == Py_None) /* as most answers are */
        return answer == Py_True;
    PyObject *answered = PyObject_CallOneArg(given.is_true, answer);
    int yes = answered == NULL ? -1 : answered == Py_True;
    Py_XDECREF(answered);
    return yes;
}

/* Ask is_eos of an output. 1: it ends its slot; `error`, if set, is what is_eos has raised, and `end`
   an End that it has returned. */
static int ends_slot(Core *core, Py_ssize_t slot, PyObject *output, PyObject **error,
                     PyObject **end)
{
    *error = *end = NULL;
    PyObject *is_eos = predicate_of(core, slot);
    if (is_eos == NULL)
        return 0;
    if (is_eos == core->is_eos && core->ids != NULL && PyLong_CheckExact(output))
        return PySet_Contains(core->ids, output);
    Py_INCREF(is_eos); /* it may open slots, and so replace itself */
    PyObject *answer = PyObject_CallOneArg(is_eos, output);
    Py_DECREF(is_eos);
    int yes = answer == NULL ? -1 : is_true(answer);
    if (yes > 0 && (PyObject *)Py_TYPE(answer) == given.end)
        *end = answer;
    else
        Py_XDECREF(answer);
    if (yes < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        *error = take_exception();
        return *error == NULL ? -1 : 1;
    }
    return yes;
}

/* Last, End and Fail: finish the slot, with what they hold. */
static int take_end(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element);

static int take_output(Core *core, Draft *draft, Py_ssize_t slot, PyObject *output)
{
    PyObject *error, *end;
    int ends = ends_slot(core, slot, output, &error, &end);
    if (error != NULL) {
        ends = finish(core, draft, slot, given.error_reason, NULL, error);
        Py_DECREF(error);
        return ends;
    }
    if (ends < 0 || (ends && PySet_Add(core->matched, Py_None) < 0) ||
        ((!ends || core->include_eos) && give(core, draft, slot, output) < 0)) {
        Py_XDECREF(end);
        return -1;
    }
    if (end != NULL) {
        ends = take_end(core, draft, slot, end);
        Py_DECREF(end);
        return ends;
    }
    if (ends)
        return finish(core, draft, slot, given.eos_reason, NULL, NULL);
    return core->slots[slot].given < core->slots[slot].limit
               ? 0 : finish(core, draft, slot, given.length_reason, NULL, NULL);
}

static int take(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element);

static int take_many(Core *core, Draft *draft, Py_ssize_t slot, PyObject *many)
{
    if (Py_EnterRecursiveCall(" in Many"))
        return -1;
    PyObject *outputs = outputs_of(many);
    int failed = outputs == NULL;
    core->gave_many = 1;
    for (Py_ssize_t n = 0; !failed && n < PyTuple_GET_SIZE(outputs); n++)
        failed = take(core, draft, slot, PyTuple_GET_ITEM(outputs, n)) < 0;
    Py_XDECREF(outputs);
    Py_LeaveRecursiveCall();
    return failed ? -1 : 0;
}

static int take_end(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    PyObject *type = (PyObject *)Py_TYPE(element), *output = NULL, *reason, *info = NULL;
    PyObject *error = NULL;
    if (type == given.fail) {
        reason = Py_NewRef(given.error_reason);
        error = PyObject_GetAttr(element, names.error);
    } else {
        reason = PyObject_GetAttr(element, names.reason);
        info = PyObject_GetAttr(element, names.info);
    }
    if (type == given.last)
        output = PyObject_GetAttr(element, names.output);
    int failed = PyErr_Occurred() || (output != NULL && give(core, draft, slot, output) < 0) ||
                 finish(core, draft, slot, reason, info, error) < 0;
    Py_XDECREF(output);
    Py_XDECREF(reason);
    Py_XDECREF(info);
    Py_XDECREF(error);
    return failed ? -1 : 0;
}

/* Fail the slot with an error; takes over the reference, which may be NULL with an exception. */
static int fail_slot(Core *core, Draft *draft, Py_ssize_t slot, PyObject *error)
{
    int failed = error == NULL ||
                 finish(core, draft, slot, given.error_reason, NULL, error) < 0;
    Py_XDECREF(error);
    return failed ? -1 : 0;
}

/* The class of a marker, which was not called: fail the slot. */
static int refuse_class(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    return fail_slot(core, draft, slot, PyObject_CallFunction(given.uncalled_marker, "Onn", element,
                                                              slot, core->steps - 1));
}

/* Requeue: the slot is neither live nor finished, until what drives the engine has seen to it. */
static int give_back(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    if (core->requeued == NULL || !PyDict_CheckExact(core->requeued))
        return fail_slot(core, draft, slot, PyObject_CallFunction(given.requeue_error, "nn", slot,
                                                                  core->steps - 1));
    PyObject *number = PyLong_FromSsize_t(slot);
    int failed = number == NULL || PyDict_SetItem(core->requeued, number, element) < 0;
    Py_XDECREF(number);
    if (failed)
        return -1;
    core->live_count -= core->slots[slot].live;
    core->slots[slot].live = 0;
    Py_CLEAR(core->live);
    return 0;
}

static int take(Core *core, Draft *draft, Py_ssize_t slot, PyObject *element)
{
    PyObject *type = (PyObject *)Py_TYPE(element);
    if (!core->slots[slot].live) /* it has finished within this Many */
        return drop(core, element);
    if (element == core->eos || element == given.eos)
        return finish(core, draft, slot, given.eos_reason, NULL, NULL);
    if (element == given.skip)
        return 0;
    if (type == given.many)
        return take_many(core, draft, slot, element);
    if (type == given.last || type == given.end || type == given.fail)
        return take_end(core, draft, slot, element);
    if (type == given.requeue)
        return give_back(core, draft, slot, element);
    if (is_marker_class(element))
        return refuse_class(core, draft, slot, element);
    return take_output(core, draft, slot, element);
}

/* ---- steps */

/* Whether it is an array or a tensor of one dimension; -1 for an exception that no array may raise. */
static int has_one_dimension(PyObject *array)
{
    PyObject *dimensions = PyObject_GetAttr(array, names.ndim);
    int one = dimensions != NULL && PyLong_CheckExact(dimensions) && PyLong_AsLong(dimensions) == 1;
    Py_XDECREF(dimensions);
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_Clear();
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

/* Whether None is among the elements of an array: it may stand for a missing value. */
static int has_none(PyObject *elements)
{
    for (Py_ssize_t n = 0; PyList_CheckExact(elements) && n < PyList_GET_SIZE(elements); n++)
        if (PyList_GET_ITEM(elements, n) == Py_None)
            return 1;
    return 0;
}

/* The elements of a step: a list or tuple as wide as the batch, or a dict by slot. */
static PyObject *read_step(Core *core, PyObject *step)
{
    if (is_read(core, step))
        return Py_NewRef(step);
    PyObject *elements = NULL;
    if (Py_TYPE(step) == core->array_type) {
        int one = has_one_dimension(step);
        elements = one == 1 ? PyObject_CallMethodNoArgs(step, names.tolist) : NULL;
        if (elements != NULL && is_read(core, elements) && !has_none(elements))
            return elements;
        Py_XDECREF(elements);
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
            return NULL;
        PyErr_Clear(); /* read once more, in Python, which says what is wrong with it */
    }
    elements = PyObject_CallFunction(given.read_step, "Onn", step, core->size, core->steps);
    int one = elements == NULL || PyDict_Check(step) ? 0 : has_one_dimension(step);
    if (one == 1)
        Py_XSETREF(core->array_type, (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(step)));
    if (one < 0)
        Py_CLEAR(elements);
    return elements;
}

/* The buffer of a slot, out of the list of them. */
static Buffer *buffer_of(PyObject *buffers, Py_ssize_t slot)
{
    PyObject *buffer = slot < PyList_GET_SIZE(buffers) ? PyList_GET_ITEM(buffers, slot) : NULL;
    if (buffer != NULL && PyObject_TypeCheck(buffer, &BufferType))
        return (Buffer *)buffer;
    PyErr_Format(PyExc_TypeError, "slot %zd has no native buffer", slot);
    return NULL;
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
           !is_marker_class(element) && slot->given + 1 < slot->limit &&
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

/* Hand out a plain step, to the buffers by slot, or into `values`, a new tuple. DRAFTED: it was none,
   and nothing was handed out. Runs no code before all is out. */
static enum Outcome hand_out_plain(Core *core, PyObject *elements, PyObject *buffers,
                                   PyObject *values)
{
    Py_ssize_t count = core->live_count;
    if (core->asks || /* a function has to be asked */
        (PyDict_CheckExact(elements) && PyDict_GET_SIZE(elements) != count) ||
        (values != NULL && PyTuple_GET_SIZE(values) != count) || !is_read(core, elements))
        return DRAFTED;
    for (Py_ssize_t n = 0; n < count; n++) {
        int slot = core->live_slots[n];
        if (!is_plain(core, plain_element(core, elements, n), &core->slots[slot]))
            return DRAFTED;
        if (values == NULL) {
            Buffer *buffer = buffer_of(buffers, slot);
            if (buffer == NULL || buffer_reserve(buffer, 1) < 0)
                return FAILED;
        }
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
    return drop_late(core, elements) < 0 ? FAILED : HANDED_OUT;
}

/* Take a step that is not plain, element by element. */
static enum Outcome take_elements(Core *core, PyObject *elements, PyObject *live, Draft *draft)
{
    /* In a copy: is_eos may change the step, or receive from this very batch. */
    int by_slot = PyDict_CheckExact(elements);
    PyObject *copy = by_slot ? PyDict_Copy(elements) : PySequence_List(elements);
    int failed = copy == NULL;
    if (!failed && !is_read(core, copy)) { /* a collection, as the copy was made */
        PyErr_SetString(PyExc_RuntimeError, "the step has changed while it was read");
        failed = 1;
    }
    failed = failed || drop_late(core, copy) < 0;
    for (Py_ssize_t n = 0; !failed && n < PyTuple_GET_SIZE(live); n++) {
        PyObject *number = PyTuple_GET_ITEM(live, n);
        Py_ssize_t slot = PyLong_AsSsize_t(number);
        PyObject *element = by_slot ? PyDict_GetItemWithError(copy, number)
                                    : PyList_GET_ITEM(copy, slot);
        failed = element != NULL && take(core, draft, slot, element) < 0;
    }
    Py_XDECREF(copy);
    return failed ? FAILED : DRAFTED;
}

/* Take any step. A StepError has changed nothing but the number of steps. */
static enum Outcome take_step(Core *core, PyObject *step, PyObject *live, PyObject *buffers,
                              PyObject *values, Draft *draft)
{
    if (core->state != names.running &&
        call_method((PyObject *)core, names.advance_state, names.feed) < 0)
        return FAILED;
    core->gave_many = 0;
    PyObject *elements = read_step(core, step);
    core->steps++;
    enum Outcome outcome = elements == NULL ? FAILED : DRAFTED;
    if (outcome != FAILED && live == core->live) /* then `live_slots` is valid */
        outcome = hand_out_plain(core, elements, buffers, values);
    if (outcome == DRAFTED)
        outcome = take_elements(core, elements, live, draft);
    Py_XDECREF(elements);
    return outcome;
}

/* Give the buffers what a draft holds; return a list of the buffers that got something or ended. */
static PyObject *hand_out_draft(Draft *draft, PyObject *buffers, PyObject *live_buffers)
{
    PyObject *touched = PyList_New(0);
    int failed = touched == NULL;
    for (Py_ssize_t n = 0; !failed && n < draft->outputs.count; n++) {
        Buffer *buffer = buffer_of(buffers, draft->outputs.pairs[n].slot);
        failed = buffer == NULL || PyList_Append(touched, (PyObject *)buffer) < 0 ||
                 buffer_reserve(buffer, 1) < 0;
        if (!failed)
            buffer_append(buffer, draft->outputs.pairs[n].value);
    }
    /* Behind the outputs: a consumer asks for the end before it finds no output. */
    for (Py_ssize_t n = 0; !failed && n < draft->ends.count; n++) {
        Buffer *buffer = buffer_of(buffers, draft->ends.pairs[n].slot);
        failed = buffer == NULL || PyList_Append(touched, (PyObject *)buffer) < 0 ||
                 buffer_finish(buffer, draft->ends.pairs[n].value) < 0 ||
                 PySet_Discard(live_buffers, (PyObject *)buffer) < 0;
    }
    if (failed)
        Py_CLEAR(touched);
    return touched;
}

static PyObject *buffers_of(PyObject *live, PyObject *buffers)
{
    Py_ssize_t count = PyTuple_GET_SIZE(live);
    PyObject *touched = PyList_New(count);
    for (Py_ssize_t n = 0; touched != NULL && n < count; n++) {
        Buffer *buffer = buffer_of(buffers, PyLong_AsSsize_t(PyTuple_GET_ITEM(live, n)));
        if (buffer == NULL)
            Py_CLEAR(touched);
        else
            PyList_SET_ITEM(touched, n, Py_NewRef((PyObject *)buffer));
    }
    return touched;
}

int core_take(Core *core, PyObject *step, PyObject *buffers, PyObject *live_buffers,
              PyObject **touched)
{
    Draft draft = {0};
    PyObject *live = core_live(core); /* the live slots before the step */
    PyObject *list = NULL;
    enum Outcome outcome = live == NULL ? FAILED
        : take_step(core, step, live, buffers, NULL, &draft);
    int failed = outcome == FAILED;
    if (outcome == DRAFTED)
        failed = (list = hand_out_draft(&draft, buffers, live_buffers)) == NULL;
    else if (outcome == HANDED_OUT && touched != NULL)
        failed = (list = buffers_of(live, buffers)) == NULL;
    drop_draft(&draft);
    Py_XDECREF(live);
    if (touched != NULL)
        *touched = list;
    else
        Py_XDECREF(list);
    return failed ? -1 : 0;
}

/* ---- as Python sees it */

static PyObject *method_take(Core *core, PyObject *args)
{
    PyObject *step, *buffers, *live_buffers, *touched = NULL;
    if (!PyArg_ParseTuple(args, "OO!O!", &step, &PyList_Type, &buffers, &PySet_Type, &live_buffers))
        return NULL;
    return core_take(core, step, buffers, live_buffers, &touched) < 0 ? NULL : touched;
}

static PyObject *method_feed(Core *core, PyObject *step)
{
    Draft draft = {0};
    PyObject *live = core_live(core), *delivery = NULL;
    /* Before the step is looked at: making it may start a collection, and that run code. */
    PyObject *values = live == NULL ? NULL : PyTuple_New(PyTuple_GET_SIZE(live));
    enum Outcome outcome = values == NULL ? FAILED
        : take_step(core, step, live, NULL, values, &draft);
    if (outcome == HANDED_OUT)
        delivery = PyObject_CallFunctionObjArgs(given.delivery, live, values, NULL);
    else if (outcome == DRAFTED)
        delivery = deliver_draft(&draft);
    drop_draft(&draft);
    Py_XDECREF(live);
    Py_XDECREF(values);
    return delivery;
}

/* The number of a slot that exists; -1 with an exception. */
static Py_ssize_t slot_of(Core *core, PyObject *number)
{
    Py_ssize_t slot = PyNumber_AsSsize_t(number, NULL);
    if (!PyErr_Occurred() && (slot < 0 || slot >= core->size))
        PyErr_Format(PyExc_IndexError, "no slot %zd", slot);
    return PyErr_Occurred() ? -1 : slot;
}

static PyObject *method_given(Core *core, PyObject *number)
{
    Py_ssize_t slot = slot_of(core, number);
    return slot < 0 ? NULL : PyLong_FromSsize_t(core->slots[slot].given);
}

static PyObject *method_end(Core *core, PyObject *args)
{
    PyObject *number, *reason, *info, *error;
    if (!PyArg_ParseTuple(args, "OOOO", &number, &reason, &info, &error))
        return NULL;
    Py_ssize_t slot = slot_of(core, number);
    return slot < 0 ? NULL : end_slot(core, slot, reason, info, error);
}

static PyObject *method_reopen(Core *core, PyObject *args)
{
    PyObject *number;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "On", &number, &limit))
        return NULL;
    Py_ssize_t slot = slot_of(core, number);
    if (slot < 0)
        return NULL;
    core->past_outputs += core->slots[slot].given;
    core->live_count += !core->slots[slot].live;
    core->slots[slot] = (Slot){.limit = limit, .live = 1};
    Py_CLEAR(core->live);
    Py_RETURN_NONE;
}

static PyObject *method_go_on(Core *core, PyObject *args)
{
    PyObject *number;
    Py_ssize_t before;
    if (!PyArg_ParseTuple(args, "On", &number, &before))
        return NULL;
    Py_ssize_t slot = slot_of(core, number);
    if (slot < 0)
        return NULL;
    core->slots[slot].given += before;
    core->past_outputs -= before; /* they were counted before */
    Py_RETURN_NONE;
}

/* The live slots as what is in the core: `slot in core`, `len(core)`. */
static int core_contains(Core *core, PyObject *number)
{
    Py_ssize_t slot = slot_of(core, number);
    return slot < 0 ? -1 : core->slots[slot].live;
}

static Py_ssize_t core_length(Core *core)
{
    return core->live_count;
}

static PyObject *get_live_slots(PyObject *core, void *Py_UNUSED(closure))
{
    return Py_NewRef(core);
}

static PyObject *get_outputs(Core *core, void *Py_UNUSED(closure))
{
    Py_ssize_t outputs = core->past_outputs;
    for (Py_ssize_t slot = 0; slot < core->size; slot++)
        outputs += core->slots[slot].given;
    return PyLong_FromSsize_t(outputs);
}

static PyObject *get_has_live(Core *core, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(core->live_count > 0);
}

static PyObject *get_predicates(Core *core, void *Py_UNUSED(closure))
{
    return Py_NewRef(core->predicates == NULL ? Py_None : core->predicates);
}

static int set_predicates(Core *core, PyObject *list, void *Py_UNUSED(closure))
{
    if (list == NULL || !PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "the predicates of slots are no list");
        return -1;
    }
    core->asks = 1;
    Py_XSETREF(core->predicates, Py_NewRef(list));
    return 0;
}

static PyObject *get_live(Core *core, void *Py_UNUSED(closure))
{
    return core_live(core);
}

static int core_init(Core *core, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"limits", "eos", "is_eos", "ids", "matched", "include_eos", "vacant",
                            NULL};
    PyObject *limits, *eos, *is_eos, *ids, *matched;
    int vacant, include_eos;
    if (core->slots != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a core is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOO!pp", words, &PyList_Type, &limits, &eos,
                                     &is_eos, &ids, &PySet_Type, &matched, &include_eos, &vacant))
        return -1;
    Py_ssize_t size = PyList_GET_SIZE(limits);
    core->slots = PyMem_New(Slot, size + 1);
    core->live_slots = PyMem_New(int, size + 1);
    core->finished = PyDict_New();
    if (core->slots == NULL || core->live_slots == NULL || core->finished == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t slot = 0; slot < size; slot++) {
        Py_ssize_t limit = PyLong_AsSsize_t(PyList_GET_ITEM(limits, slot));
        if (limit == -1 && PyErr_Occurred())
            return -1;
        core->slots[slot] = (Slot){.limit = limit, .live = !vacant};
    }
    core->state = Py_NewRef(names.running);
    core->eos = Py_NewRef(eos);
    core->is_eos = is_eos == Py_None ? NULL : Py_NewRef(is_eos);
    core->ids = ids == Py_None ? NULL : Py_NewRef(ids);
    core->matched = Py_NewRef(matched);
    core->include_eos = (char)include_eos;
    core->asks = core->is_eos != NULL && core->ids == NULL;
    core->size = size; /* last: what is no core has no slots */
    core->live_count = vacant ? 0 : size;
    return 0;
}

static int core_traverse(Core *core, visitproc visit, void *arg)
{
    Py_VISIT(core->live);
    Py_VISIT(core->state);
    Py_VISIT(core->finished);
    Py_VISIT(core->eos);
    Py_VISIT(core->is_eos);
    Py_VISIT(core->ids);
    Py_VISIT(core->matched);
    Py_VISIT(core->predicates);
    Py_VISIT(core->requeued);
    Py_VISIT(core->array_type);
    return 0;
}

/* Only what may be part of a circle: the rest is needed by every method. */
static int core_clear(Core *core)
{
    Py_CLEAR(core->eos);
    Py_CLEAR(core->is_eos);
    Py_CLEAR(core->predicates);
    Py_CLEAR(core->requeued);
    Py_CLEAR(core->array_type);
    return 0;
}

static void core_dealloc(Core *core)
{
    PyObject_GC_UnTrack(core);
    core_clear(core);
    Py_CLEAR(core->live);
    Py_CLEAR(core->state);
    Py_CLEAR(core->finished);
    Py_CLEAR(core->ids);
    Py_CLEAR(core->matched);
    PyMem_Free(core->slots);
    PyMem_Free(core->live_slots);
    Py_TYPE(core)->tp_free((PyObject *)core);
}

static PyMethodDef core_methods[] = {
    {"take", (PyCFunction)method_take, METH_VARARGS, NULL},
    {"_feed", (PyCFunction)method_feed, METH_O, NULL},
    {"given", (PyCFunction)method_given, METH_O, NULL},
    {"_end", (PyCFunction)method_end, METH_VARARGS, NULL},
    {"_reopen", (PyCFunction)method_reopen, METH_VARARGS, NULL},
    {"_go_on", (PyCFunction)method_go_on, METH_VARARGS, NULL},
    {NULL},
};

static PyMemberDef core_members[] = {
    {"_size", T_PYSSIZET, offsetof(Core, size), READONLY, NULL},
    {"_steps", T_PYSSIZET, offsetof(Core, steps), READONLY, NULL},
    {"_dropped", T_PYSSIZET, offsetof(Core, dropped), READONLY, NULL},
    {"_past_outputs", T_PYSSIZET, offsetof(Core, past_outputs), READONLY, NULL},
    {"_finished", T_OBJECT_EX, offsetof(Core, finished), READONLY, NULL},
    {"_state", T_OBJECT_EX, offsetof(Core, state), 0, NULL},
    {"_requeued", T_OBJECT, offsetof(Core, requeued), 0, NULL},
    {"gave_many", T_BOOL, offsetof(Core, gave_many), READONLY, NULL},
    {NULL},
};

static PyGetSetDef core_getset[] = {
    {"live", (getter)get_live, NULL, NULL, NULL},
    {"_predicates", (getter)get_predicates, (setter)set_predicates, NULL, NULL},
    {"has_live", (getter)get_has_live, NULL, NULL, NULL},
    {"outputs", (getter)get_outputs, NULL, NULL, NULL},
    {"_live_slots", get_live_slots, NULL, NULL, NULL},
    {NULL},
};

static PySequenceMethods core_as_sequence = {
    .sq_length = (lenfunc)core_length,
    .sq_contains = (objobjproc)core_contains,
};

PyTypeObject CoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "batchstream._native.extension.Core",
    .tp_doc = "Decides, step by step, which output goes to which slot and which have finished.",
    .tp_basicsize = sizeof(Core),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)core_init,
    .tp_dealloc = (destructor)core_dealloc,
    .tp_traverse = (traverseproc)core_traverse,
    .tp_clear = (inquiry)core_clear,
    .tp_methods = core_methods,
    .tp_members = core_members,
    .tp_getset = core_getset,
    .tp_as_sequence = &core_as_sequence,
};
