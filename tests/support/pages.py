"""The code of a page of the documentation, as a reader pastes it.

The blocks of a page are programs of their own, unless the page says at its top that they `are one
program`: then each may use what stands before it, and a file holds all of them. A page that speaks
of a notebook at its top can be pasted into one, with the replacements of its table.
"""

import ast
import doctest
import re
import shlex
from dataclasses import dataclass
from itertools import zip_longest

FRAMEWORKS = {"FastAPI", "Litestar", "Quart", "Starlette", "get_asgi_application"}

BLOCK = re.compile(r"^```(?P<kind>[a-z]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$].*\n)*)", re.MULTILINE)


@dataclass
class Block:
    """A fenced block of a page."""

    kind: str
    body: str
    line: int

    @property
    def examples(self):
        return doctest.DocTestParser().get_examples(self.body)

    @property
    def code(self):
        """What a file has of it: without prompts, and without what is shown to raise."""
        if self.kind == "python":
            return self.body
        return "".join(example.source for example in self.examples if not example.exc_msg)

    @property
    def pieces(self):
        """What is entered at a time, each with the type of the error that it shows, or None."""
        if self.kind == "python":
            return [(self.body, None)]
        return [(e.source, e.exc_msg and e.exc_msg.partition(":")[0]) for e in self.examples]

    @property
    def makes_app(self):
        return any(
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Call)
            and getattr(statement.targets[0], "id", None) == "app"
            and getattr(statement.value.func, "id", None) in FRAMEWORKS
            for statement in ast.parse(self.code).body
        )

    @property
    def is_main(self):
        return 'if __name__ == "__main__":' in self.code

    @property
    def is_model(self):
        """Whether it serves a model to the server of its page, from a process of its own."""
        return self.is_main and "from batchstream.remote import serve" in self.code


@dataclass
class Server:
    """A file that serves, with the commands that the page has for it."""

    code: str
    block: Block
    prepare: list
    start: list
    models: list  # of other processes: pairs of a file's name and its code
    asks: list  # pairs of a curl command and what the page shows of its answer

    @property
    def name(self):
        """The file's name, without `.py`."""
        if self.start[0] == "uvicorn":
            return next(word for word in self.start if ":app" in word).partition(":")[0]
        return self.start[1].removesuffix(".py")


class Page:
    """A page with its blocks of code and its commands."""

    def __init__(self, path):
        text = path.read_text()
        self.name = path.name
        top = " ".join(text.partition("\n## ")[0].split())
        self.is_program = "blocks of the page are one program" in top or (
            "blocks are one program" in top
        )
        self.is_notebook = self.is_program and "notebook" in top
        self.replacements = dict(re.findall(r"^\| `(.+)` \| `(await .+)` \|$", text, re.MULTILINE))
        self.all = []
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("kind")) + 1
            self.all.append(Block(match["kind"], match["body"], line))
        self.blocks = [block for block in self.all if block.kind in ("python", "pycon")]

    def programs(self):
        """Return the files to run: their blocks, which end by themselves."""
        if self.is_program:
            return [[block for block in self.blocks if not block.is_main]]
        return [[b] for b in self.blocks if not (b.is_main or b.makes_app)]

    def servers(self):
        """Return the files to serve: up to each block that starts a server, or makes an app."""
        models = [b for b in self.blocks if b.is_model]
        ends = [b for b in self.blocks if (b.is_main or b.makes_app) and b not in models]
        for end, following in zip_longest(ends, ends[1:]):
            if self.is_program and following is not None and following.is_main and not end.is_main:
                continue  # the app of the server that is started there
            before = self.blocks[: self.blocks.index(end)] if self.is_program else []
            earlier = [b for b in before if not b.is_main]
            at = self.all.index(end)
            stop = len(self.all) if following is None else self.all.index(following)
            prepare = commands(self.all[:at])
            after = commands(self.all[at:stop])
            starts = [words for words, _ in after if words[0] in ("uvicorn", "python")]
            names = [words[1] for words in starts if words[-1] == "&"]
            starts = [words for words in starts if words[-1] != "&"]
            default = ["python", "page.py"] if end.is_main else ["uvicorn", "page:app"]
            yield Server(
                code="\n".join(block.code for block in [*earlier, end]),
                block=end,
                prepare=[words for words, _ in prepare if words[:2] == ["python", "-c"]],
                start=starts[0] if starts else default,
                models=list(zip(names, [b.code for b in models], strict=True)) if names else [],
                asks=[(words, answer) for words, answer in after if words[0] == "curl"],
            )

    def replace(self, code):
        """Return code as it is written where an event loop runs already."""
        for there, here in self.replacements.items():
            code = re.sub(rf"^{re.escape(there)}$", here, code, flags=re.MULTILINE)
        return code


def commands(blocks):
    """Return the commands of console blocks, in words, each with what it is shown to print."""
    found = []
    for block in blocks:
        if block.kind == "console":
            for command, answer in COMMAND.findall(block.body):
                words = shlex.split(command.replace("\\\n", " "))
                found.append((words, answer))
    return found
