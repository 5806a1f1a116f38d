"""One Ray for all the tests of this folder: `make ray-test` runs them where Ray may bind.

Ray binds all interfaces, so it is started only where loopback is the only one. The tests deploy
their applications side by side. A replica takes seconds to start, so the tests of a module share
applications where they can.
"""

import gc
import importlib
import importlib.util
import itertools
import os
import warnings
from pathlib import Path

import pytest

from support.pages import Page
from support.ray_cluster import ROOT, running_ray, why_not

# How many seconds a replica may take to say how many requests it has. Where none answers in time,
# as on a busy machine, a request goes to any, also to one that is full. Read as Ray is imported.
for name in ("RAY_SERVE_QUEUE_LENGTH", "RAY_SERVE_MAX_QUEUE_LENGTH"):
    os.environ[f"{name}_RESPONSE_DEADLINE_S"] = "20"

if importlib.util.find_spec("ray") is not None:  # else each module says that it is skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about how Ray uses it
        from ray import serve


def pytest_collection_modifyitems(config, items):
    """Take what Ray leaves open for what it is: no fault of the test in which it is found."""
    config.add_cleanup(
        _collect_what_ray_leaves_open
    )  # before pytest collects it, and fails the run
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))  # the first one waits for Ray, too
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


def _collect_what_ray_leaves_open():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):  # a finalizer may leave more
            gc.collect()


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory):
    """Write docs/ray.md as a module, whose blocks are one program."""
    page = Page(ROOT / "docs" / "ray.md")
    assert page.is_program
    folder = tmp_path_factory.mktemp("page")
    (folder / "page_on_ray.py").write_text("\n".join(block.code for block in page.blocks))
    return folder


@pytest.fixture(scope="session")
def ray_cluster(page_folder):
    """Start a Ray, with Serve in it, which ends with the tests."""
    if reason := why_not():
        pytest.skip(reason)
    # A deployment of a module of these tests is found by name, in the replicas too.
    with running_ray(Path(__file__).parent, page_folder) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def page(page_folder):
    """Return the page on Ray as a module, which the replicas can import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(page_folder)
        yield importlib.import_module("page_on_ray")


numbers = itertools.count()


@pytest.fixture(scope="module")
def deploy(ray_cluster):
    """Return a function that runs applications, for as long as the module's tests last.

    It takes applications, starts them at the same time, and returns the handle of each. An
    application is reached over HTTP below its name, such as `/one` with `deploy(one=Model.bind())`;
    `deploy(app)` makes a name. A name that runs already is redeployed.
    """
    names = []

    def run(*apps, **named):
        targets = {f"app{next(numbers)}": app for app in apps} | named
        names.extend(targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handles = serve.run_many(
                [
                    serve.RunTarget(target=app, name=name, route_prefix=f"/{name}")
                    for name, app in targets.items()
                ],
                wait_for_applications_running=True,
            )
        return handles[0] if len(handles) == 1 else handles

    yield run
    for name in dict.fromkeys(names):
        serve.delete(name, _blocking=False)
