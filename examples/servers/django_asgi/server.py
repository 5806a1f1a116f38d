"""Django under ASGI: a view that waits for the first output, which says whether there is a reply.

In the folder `examples/servers`:

    pip install -r django_asgi/requirements.txt
    uvicorn django_asgi.server:app --port 8000

    curl -N http://127.0.0.1:8000/spell/word
"""

import logging

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET
from model import batcher

from batchstream import BatchStreamError
from batchstream.integrations.http import status_of

logging.basicConfig()  # without it, an error of the model shows nowhere
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of no use here")


@require_GET  # Django sends the body of HEAD, too, and the server drops it
async def spell(request, word):
    try:
        body = await batcher.astream(word).begin()
    except BatchStreamError as error:
        status = status_of(error)  # 503 if too many requests wait
        return JsonResponse({"detail": status.detail}, status=status.code, headers=status.headers)
    return StreamingHttpResponse(body, content_type="text/plain")


urlpatterns = [path("spell/<word>", spell)]
app = get_asgi_application()
