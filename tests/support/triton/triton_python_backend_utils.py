"""Stands in for the module that Triton's Python backend gives its models, by its documentation.

https://github.com/triton-inference-server/python_backend#readme says what each name does. What a
model may not do is an error here.
"""

import queue

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    """Raised by what a model calls in the wrong way."""


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG"
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"

    def __init__(self, message, code=INTERNAL):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = output_tensors, error

    def output_tensors(self):
        return self._tensors

    def error(self):
        return self._error


class ResponseSender:
    """Sends the responses of one request; the test takes them from a queue, behind them None."""

    def __init__(self):
        self.responses = queue.SimpleQueue()
        self.cancelled = self.over = False

    def send(self, response=None, flags=0):
        if self.over:
            raise TritonModelException("nothing may be sent after the final flag")
        if response is None and flags != TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            raise TritonModelException("a response may be left out with the final flag alone")
        if response is not None:
            self.responses.put(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.over = True
            self.responses.put(None)

    def is_cancelled(self):
        return self.cancelled


class InferenceRequest:
    def __init__(self, inputs):
        self._inputs, self.sender = inputs, ResponseSender()

    def inputs(self):
        return self._inputs

    def get_response_sender(self):
        return self.sender

    def is_cancelled(self):
        return self.sender.cancelled


def get_input_tensor_by_name(request, name):
    """Return the input of this name; None if there is none."""
    return next((it for it in request.inputs() if it.name() == name), None)
