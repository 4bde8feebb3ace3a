"""What every command line of the project shares: one-line errors with exit status 2."""

import argparse
import contextlib
import difflib
import errno
import functools
import os
import re
import resource
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn


def redact(words: list[str]) -> list[str]:
    """Words of a command, or of a message, without tokens: what looks like one, and the value of any `--...token`."""
    hidden, before = [], ""
    for word in words:
        word = re.sub(r"^(--[\w-]*token)=.*", r"\1=<hidden>", word, flags=re.DOTALL)
        is_token = re.fullmatch(r"--[\w-]*token", before)
        word = re.sub(r"(?<=://)[^/\s@]+@", "<hidden>@", word)  # who logs in to a mirror, and with what
        hidden.append("<hidden>" if is_token else re.sub(r"\bhf_\w+(?![\w/])", "<hidden>", word))
        before = word
    return hidden


class InputError(Exception):
    """Bad input from the user. The message is one line that names the thing, the place and the remedy, and no token."""

    def __init__(self, message: str):
        super().__init__(*redact([message]))


def path(text: str) -> Path:
    """argparse type of a path. An empty one, such as an unset variable leaves, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, give a path")
    return Path(text)


def normalize_option(word: str) -> str:
    """`--hub-token=x` as `--hub_token=x`; a word that is no option stays as it is."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def suggest_name(name: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def suggest_path(path: str | Path) -> str:
    """`; did you mean '…'?` where a path that is not there has neighbours of nearly its name, or nothing."""
    found = Path(Path(path).anchor)
    for part in Path(path).parts[len(found.parts) :]:
        if not os.path.exists(found / part):
            try:
                near = difflib.get_close_matches(part, os.listdir(found), n=1)
            except OSError:  # no folder, or one that may not be listed
                near = []
            if not near:
                return ""
            part = near[0]
        found /= part
    return f"; did you mean '{found}'?" if found != Path(path) else ""


def existing(text: str) -> Path:
    """argparse type of a path that is there, which is said before anything is imported."""
    if not text:
        raise InputError("an argument is empty, give a path")
    if not os.path.exists(text):
        raise InputError(f"{text}: no such folder or file{suggest_path(text)}")
    return Path(text)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, but a wrong option is one line on stderr (no usage dump) and options are never abbreviated."""

    def __init__(self, *args, **kwargs):
        own = {"allow_abbrev": False, "formatter_class": argparse.ArgumentDefaultsHelpFormatter}
        super().__init__(*args, **own | kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Options have one spelling, the Trainer's, with underscores; with dashes they are understood as well."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([normalize_option(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        nearest = ""
        if wrong := re.match(r"unrecognized arguments: (--\w+)", message):
            nearest = suggest_name(wrong[1], self._list_options())
        elif wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            nearest = suggest_name(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        raise InputError(f"{message}{nearest} (see {self.prog} --help)")

    def _list_options(self) -> list[str]:
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [option for parser in action.choices.values() for option in parser._list_options()]
        return found


LEAST_ADDRESSES = 1 << 29  # bytes; with fewer, the linker or OpenBLAS ends the process in words of its own
SHORTAGES = {  # what a machine, or a limit, has too little of; whatever was read or written is not to blame
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
}


NO_MEMORY = (
    r"DefaultCPUAllocator|out of memory|failed to map segment|[Cc]annot allocate memory"  # torch, the linker
    r"|worker thread: Resource temporarily|ThreadPoolBuildError"  # threads of Arrow, and of libraries in Rust
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, by whichever library's exception."""
    return isinstance(error, MemoryError) or bool(re.search(NO_MEMORY, str(error)))


def is_shortage(error: BaseException) -> bool:
    """Whether the machine has too little of something."""
    return is_out_of_memory(error) or getattr(error, "errno", None) in SHORTAGES


def locate_error(error: BaseException, path: Path) -> BaseException:
    """Returns an OSError that names `path` and the cause, where `error` lacks them; else `error` itself."""
    if isinstance(error, OSError) and error.errno:
        error.filename = error.filename or str(path)
        return error
    number = None
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # as the libraries in Rust say it
        number = int(found[1])
    elif re.search(r"\d requested and \d+ written$|iostream error$|unexpected pos \d", str(error)):  # NumPy; torch
        is_limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        number = errno.EFBIG if is_limited else errno.ENOSPC
    return error if number is None else OSError(number, os.strerror(number), str(path))


def describe_os_error(error: OSError) -> str:
    """What the system refused, of which path, and the remedy."""
    where = error.filename or error.filename2
    what = f"{where}: {error.strerror}" if where and error.strerror else " ".join(str(error).split())
    return f"{what}; {SHORTAGES.get(error.errno, 'name another path, or mend this one')}"


class _Lasting:
    """A text stream that goes on, into nothing, where what read it is gone."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable, *arguments):
        try:
            return action(*arguments)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # else this text alone is lost, as on a disk that is full
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())  # for what is left in its buffer, and for processes begun here
                os.close(nothing)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """A terminal that is closed, or a `tee` that Ctrl-C ends, stops nothing within: what is printed then is lost."""
    out, err = (stream and _Lasting(stream) for stream in (sys.stdout, sys.stderr))  # None where it was closed at first
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def fail(error: InputError | str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _has_reader() -> bool:
    """Whether someone still reads the output: of a pipe into `head`, nobody does once that has enough."""
    poll = select.poll()
    poll.register(sys.__stdout__, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], None]:
    """Decorates a `main(argv=None)`: an `InputError`, what the system refuses, or a library that is not installed, is
    one line and exit status 2. A script imports libraries within it, so that this holds for them and what can be said
    without them comes at once.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> None:
        try:
            if 0 <= (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < LEAST_ADDRESSES:
                what = f"only {limit >> 20} MiB of memory may be addressed, too little to load the libraries"
                raise InputError(f"{what}; raise that limit (ulimit -v)")
            main(argv)
        except InputError as error:
            fail(error)
        except BrokenPipeError as error:
            if _has_reader():
                fail(InputError(describe_os_error(error)))
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  else Python complains once more
            sys.exit(141)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BaseException as error:  # a panic in Rust is no Exception
            if isinstance(error, OSError) and error.errno:
                fail(InputError(describe_os_error(error)))
            if is_out_of_memory(error):
                fail("out of memory; free some, raise its limit (ulimit -v), or ask for less at a time")
            if isinstance(error, OSError):
                fail(InputError(describe_os_error(error)))
            if isinstance(error, ImportError) and not str(error.name).startswith("flexqwen"):
                fail(f"{error} (Python is {sys.executable}); install what is needed: pip install -r requirements.txt")
            raise

    return wrapper
