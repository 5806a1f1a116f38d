/* What the files of the native core share: the objects, and what each file offers to the others.

   Invariants that every file relies on:

   - The global interpreter lock is held throughout. Between two calls that may run Python code, no
     other thread and no signal's handler comes in between: such a stretch is atomic.
   - What may run Python code: a call, an attribute, a comparison, a dealloc (Py_DECREF), and making
     an object that the collector tracks, as that may start a collection. After each, whatever was
     read of an object before may have changed.
   - A function that returns NULL or -1 has set an exception, unless it says otherwise. */

#ifndef BATCHSTREAM_NATIVE_H
#define BATCHSTREAM_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* ---- what is imported from the package in Python, once, as the module is loaded */

enum Reason { EOS, LENGTH, EXHAUSTED, CANCELLED, ERROR, REASONS };

typedef struct {
    PyObject *reasons[REASONS];              /* FinishReason's members */
    PyObject *stream_end, *delivery, *statistics; /* records.py */
    PyObject *eos, *skip;                    /* markers.py */
    PyTypeObject *signal, *last, *end, *fail, *many;
    PyObject *step_error, *consumer_error;   /* errors.py: a type; and functions */
    PyObject *missing_eos_error, *batch_over_error, *no_slot_error,
        *concurrent_error;
    PyObject *read_step;                     /* steps.py */
    PyObject *check_limit;                   /* arguments.py */
} Imported;

typedef struct {
    PyObject *apply_departures_if_free, *attach, *call_soon, *check_loop, *close, *close_if_idle,
        *context, *error, *fail, *finish, *gi_yieldfrom, *info, *name, *ndim, *output, *outputs,
        *reason, *resume_all, *role, *source_over, *throw_, *tolist, *wait, *wait_and_poll;
} Names;

extern Imported imported;
extern Names names;

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
    unsigned long consumer; /* the thread that waits for an output; 0: none */
    char cancelled;         /* nothing more can be received */
    char awaited;           /* a task waits for an output */
} Buffer;

extern PyTypeObject BufferType;

/* Make room for so many outputs more: as many calls of buffer_append then cannot fail. */
int buffer_reserve(Buffer *buffer, unsigned int more);
/* Add an output, for which there is room. May run code, by dropping it where it is cancelled. */
void buffer_append(Buffer *buffer, PyObject *output);
/* Take the oldest output; there has to be one. Runs no code. */
PyObject *buffer_take(Buffer *buffer);
/* Take all outputs as a list, and tell of the room that this makes. */
PyObject *buffer_take_all(Buffer *buffer);
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
int core_has_live(Core *core);
/* Hand a step out to the buffers. Returns, if `touched` is not NULL, a list of those that got
   something or ended. Slots that end leave `live_buffers`. */
int core_take(Core *core, PyObject *step, PyObject *buffers, PyObject *live_buffers,
              PyObject **touched);

/* ---- pull.c: a step of a batch that is pulled */

typedef struct Pull Pull;
extern PyTypeObject PullType;

/* Make a step if that is all there is to do. 1: one was made. 0: not, and the pump has to see. */
int pull_step(Pull *pull, Buffer *buffer, PyObject *pump);

/* ---- reader.c, async_reader.c: the consumer's end; waiter.c: what a task of asyncio awaits */

typedef struct {
    PyObject_HEAD
    Buffer *buffer;
    PyObject *upstream;
    PyObject *weakrefs;
    Pull *pull;             /* that of the upstream; NULL: it has none */
} Reader;

extern PyTypeObject ReaderType, AsyncReaderType, ReceiveType, WaiterType;

int reader_init(Reader *reader, PyObject *args, PyObject *keywords);
int reader_traverse(Reader *reader, visitproc visit, void *arg);
int reader_clear(Reader *reader);
PyObject *reader_refuse_concurrent(Reader *reader, const char *consumer);

extern unsigned char outputs_per_turn;
extern int waiters_per_turn;

/* Let the running task wait for this waiter: it is what the task has to be given next. */
PyObject *waiter_await(PyObject *waiter);

/* ---- module.c */

/* The exception that is set, taken out as an object with its traceback. */
PyObject *take_exception(void);
/* Set it again. Takes over the reference. */
void set_exception(PyObject *exception);
PyObject *return_self(PyObject *self);

#endif
