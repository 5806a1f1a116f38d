/* What the files of the native core share: the objects, and what each file offers to the others.

   Invariants that every file relies on:

   - The global interpreter lock is held throughout. Between two calls that may run Python code, no
     other thread and no signal's handler comes in between: such a stretch is atomic.
   - What may run Python code: a call, an attribute, a comparison, a Py_DECREF that frees, and making
     an object that the collector tracks, as that may start a collection. After each, whatever was
     read of an object before may have changed.
   - A function that returns NULL or -1 has set an exception, unless it says otherwise. */

#ifndef BATCHSTREAM_NATIVE_H
#define BATCHSTREAM_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* ---- module.c: what the package in Python has given, and calls into it */

typedef struct {
    PyObject *eos_reason, *length_reason, *error_reason, *stream_end, *delivery; /* records.py */
    PyObject *eos, *skip, *signal, *last, *end, *fail, *many, *requeue;          /* markers.py */
    PyObject *consumer_error, *concurrent_error, *uncalled_marker, *requeue_error; /* errors.py */
    PyObject *is_true;                                                           /* rules.py */
    PyObject *read_step;                                                         /* steps.py */
} Given;

typedef struct {
    PyObject *advance, *advance_state, *apply_departures_if_free, *are_full, *attach, *call_soon,
        *check_loop, *close, *close_if_idle, *error, *fail, *feed, *finish, *gi_yieldfrom, *info,
        *name, *ndim, *output, *outputs, *reason, *resume_all, *role, *running, *source_over, *throw_, *tolist, *wait,
        *wait_and_poll;
} Names;

extern Given given;
extern Names names;
extern int outputs_per_turn, waiters_per_turn; /* see _eventloops/base.py */

/* Call a method, with one argument or with none, and drop what it returns. */
int call_method(PyObject *object, PyObject *name, PyObject *argument);
/* Raise an exception object; takes over the reference. Returns -1. */
int raise_object(PyObject *exception);
/* The exception that is set, taken out as an object with its traceback; NULL if there is none. */
PyObject *take_exception(void);
/* Set it again, in place of any other. Takes over the reference; NULL is no exception. */
void give_exception(PyObject *exception);
/* Clear an AttributeError. Any other exception stays: -1. */
int clear_attribute_error(void);
/* Leave a context that was entered; where there is no result, its exception stays. */
void leave_context(PyObject *context, PyObject **result);
PyObject *return_self(PyObject *self);

/* ---- buffer.c: what one stream holds between its pump and its consumer */

typedef struct {
    PyObject_HEAD
    PyObject **outputs;     /* a ring of `capacity` places, which is 0 or a power of two */
    unsigned int capacity, first, count;
    int slot;
    PyObject *name;         /* NULL: it is named by its slot */
    PyObject *end;          /* a StreamEnd; NULL: none yet. The first one stands. */
    PyObject *refusal;      /* why it cannot be read; NULL: it can */
    PyObject *on_room;      /* what the consumer calls when it has made room; NULL: nothing */
    PyObject *sizes;        /* how many bytes it holds; NULL: they have no bound */
    unsigned long consumer; /* the thread that waits for an output; 0: none */
    char cancelled;         /* nothing more can be received */
    char awaited;           /* a task waits for an output */
} Buffer;

extern PyTypeObject BufferType;

/* Make room for so many outputs more: as many calls of buffer_append then cannot fail. */
int buffer_reserve(Buffer *buffer, size_t more);
/* Add an output, for which there is room, unless the stream was cancelled. Runs no code. */
void buffer_append(Buffer *buffer, PyObject *output);
/* Take the oldest output; there has to be one. Runs no code. */
PyObject *buffer_take(Buffer *buffer);
/* Take all outputs as a list, and call on_room. */
PyObject *buffer_take_all(Buffer *buffer, PyObject *none);
/* Call on_room, if it is set. */
int buffer_made_room(Buffer *buffer);
/* Set the end, unless there is one; by the method of a subclass, if it has one. */
int buffer_finish(Buffer *buffer, PyObject *end);
/* Raise what the stream has ended with, once. 0: nothing, the stream is simply over. */
int buffer_conclude(Buffer *buffer);

/* ---- core.c: what a step gives to which slot */

typedef struct Core Core;
extern PyTypeObject CoreType;

/* The live slots as a tuple, the same object while nothing changes; a new reference. */
PyObject *core_live(Core *core);
/* Hand a step out to the buffers; streams that end leave `live_buffers`. Sets `touched`, unless that
   is NULL, to a list of the buffers that got something or ended. */
int core_take(Core *core, PyObject *step, PyObject *buffers, PyObject *live_buffers,
              PyObject **touched);

/* ---- role.c: the right to make a step of a batch that is pulled */

typedef struct Role Role;
extern PyTypeObject RoleType;

/* Make a step if that is all there is to do. 1: one was made. 0: not, and the pump has to see. */
int role_make_step(Role *role, Buffer *buffer, PyObject *pump);

/* ---- reader.c, async_reader.c: the consumer's end; waiter.c: what a task of asyncio awaits */

typedef struct {
    PyObject_HEAD
    Buffer *buffer;
    PyObject *upstream;
    PyObject *weakrefs;
} Reader;

extern PyTypeObject ReaderType, AsyncReaderType, ReceiveType, WaiterType;

/* The buffer, or NULL for a reader that was not made by its `__init__`. */
Buffer *reader_buffer(Reader *reader);
int reader_init(Reader *reader, PyObject *args, PyObject *keywords);
int reader_traverse(Reader *reader, visitproc visit, void *arg);
int reader_clear(Reader *reader);
/* Raise the error of a second consumer. */
int refuse_second_consumer(Buffer *buffer, const char *consumer);
/* What a task that awaits this has to be given: the waiter itself. */
PyObject *waiter_await(PyObject *waiter);
/* Whether a task waits for it. */
int waiter_is_awaited(PyObject *waiter);

#endif
