"""What a page of the documentation says to do, done.

A page is read from top to bottom. A block of C is a part of the reader's program:

  - what it has under a name that the program has already (a function, a structure, an
    enumeration, a variable) takes the place of that;
  - what is new goes right above what follows it in the block, or above main();
  - lines that begin with # go to the top.

The first block, with main(), is the program to begin with. A block of the kind 'console' is a session: what
follows '$ ' is a command, with more lines if it has a '<<END' or ends in a backslash, and
then comes what it prints. A line '...' stands for any number of lines. Commands go to
one bash for the whole page, as a reader's do, so that '&', 'kill %1' and 'export' mean what they
say. Before a command that compiles NAME.c, the program as it stands is written there.
"""
import dataclasses
import os
import pathlib
import re
import subprocess
import uuid

TOP = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Block:
    kind: str
    line: int
    text: str


def blocks(page):
    """The fenced blocks of a page."""
    found, current = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if current is None and (fence := re.fullmatch(r"```(\w+)", line)):
            current = Block(fence[1], number + 1, "")
        elif current is not None and line == "```":
            found.append(current)
            current = None
        elif current is not None:
            current.text += line + "\n"
    assert current is None, f"{page}: the block from line {current.line} on has no end"
    return found


# --- the program ----------------------------------------------------------------

def name(item):
    """What a definition defines."""
    code = re.sub(r"/\*.*?\*/", "", item, flags=re.S).strip()
    for pattern in (r"(?:struct|enum) (\w+) \{", r"enum \{\s*(\w+)", r"[\w\s*]*?\b(\w+)\([^;{]*\)\s*\{", r"[\w\s*]*?\b(\w+)(?:\[\w*\])?(?: = |;)"):
        if match := re.match(pattern, code):
            return match[1]
    raise AssertionError(f"this defines nothing:\n{item}")


def definitions(text):
    """The lines for the top, and the definitions with their comments."""
    top, items, item = [], [], []
    for line in text.splitlines():
        if line.startswith("#"):
            top.append(line)
        elif line or item:
            item.append(line)
            if re.match(r"\}", line) or re.match(r"\w.*;$", line):
                items.append("\n".join(item))
                item = []
    assert not item, "a definition without an end:\n" + "\n".join(item)
    return top, items


class Program:
    def __init__(self):
        self.top, self.items = [], []

    def add(self, text):
        top, items = definitions(text)
        self.top += [line for line in top if line not in self.top]
        before = {name(item): item for item in self.items}
        place = len(self.items) - 1 if self.items else 0
        for item in reversed(items):
            if name(item) in before:
                place = [name(i) for i in self.items].index(name(item))
                self.items[place] = item
            else:
                self.items.insert(place, item)

    def text(self):
        return "\n".join(self.top) + "\n\n" + "\n\n".join(self.items) + "\n"


# --- the session ----------------------------------------------------------------

@dataclasses.dataclass
class Command:
    line: int
    text: str
    output: list


def commands(block):
    found, lines = [], list(enumerate(block.text.splitlines(), block.line))
    while lines:
        number, line = lines.pop(0)
        if not line.startswith("$ "):
            assert found, f"line {number}: output of nothing"
            found[-1].output.append(line)
            continue
        text = line[2:]
        while text.endswith("\\") or ("<<END" in text and not text.endswith("\nEND")):
            text += "\n" + lines.pop(0)[1]
        found.append(Command(number, text, []))
    return found


def agrees(shown, printed):
    """Whether what was printed is what is shown; '...' stands for any lines."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(agrees(shown[1:], printed[n:]) for n in range(len(printed) + 1))
    return bool(printed) and shown[0].rstrip() == printed[0].rstrip() and agrees(shown[1:], printed[1:])


def listens(pid):
    """Whether a process listens at a UNIX socket. Unlike a connection, asking disturbs nobody."""
    accepting = "00010000"
    rows = [line.split() for line in open("/proc/net/unix")]
    sockets = {f"socket:[{words[6]}]" for words in rows if words[3] == accepting}
    try:
        return any(os.readlink(entry) in sockets for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # a descriptor that was closed meanwhile, or the process has ended
        return False


class Session:
    """One bash, in a folder of its own in which the names of the source tree are known."""

    def __init__(self, folder, build, vfu):
        self.folder = folder
        for entry in ("examples-c", "scripts", "docs"):
            (folder / entry).symlink_to(TOP / entry)
        (folder / "target").mkdir()
        (folder / "target" / "meson").symlink_to(build)
        environment = {
            **os.environ, "PATH": f"{vfu.parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8",
            "PKG_CONFIG_PATH": f"{build}/meson-uninstalled", "LD_LIBRARY_PATH": str(build),
        }
        self.bash = subprocess.Popen(["bash", "--norc"], cwd=folder, env=environment, text=True, start_new_session=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        # On a machine that is busy with other tests an answer may take longer than a reader would wait. (irq waits for ever.)
        self.run('vfu() { if [ "$1" = irq ]; then command vfu "$@"; else command vfu --timeout 60 "$@"; fi; }')

    def run(self, text):
        """Runs a command; what it printed."""
        mark = f"end-of-{uuid.uuid4().hex}"
        # A shell that talks to a person reports jobs that have ended, and forgets them.
        self.bash.stdin.write(f"{text}\njobs >/dev/null\necho; echo {mark}\n")
        self.bash.stdin.flush()
        lines = []
        while (line := self.bash.stdout.readline()) != f"{mark}\n":
            assert line, f"bash has ended at: {text}"
            lines.append(line.rstrip("\n"))
        if lines and lines[-1] == "":
            lines.pop()
        if text.endswith("&"):
            self.await_listener()
        return lines

    def await_listener(self):
        """Until the server that was just started can take a client."""
        [pid] = self.run("echo $!")
        while not listens(pid):
            assert self.run("jobs -r | wc -l") != ["0"], "the server has ended"
            os.sched_yield()

    def close(self):
        try:
            self.run("kill $(jobs -p) 2>/dev/null; wait")
        finally:
            self.bash.stdin.close()
            self.bash.wait()
            self.bash.stdout.close()


def steps(page, session, folder):
    """Does what a page says, and yields each command with what it printed."""
    program = Program()
    for block in blocks(page):
        if block.kind == "c":
            program.add(block.text)
        elif block.kind == "console":
            for command in commands(block):
                if source := re.match(r"cc .*?(\w+\.c)\b", command.text):
                    (folder / source[1]).write_text(program.text())
                yield command, session.run(command.text)


def follow(page, folder, build, vfu):
    """Does what a page says; fails where it is wrong. Returns the number of commands."""
    session = Session(folder, build, vfu)
    done = 0
    try:
        for command, printed in steps(page, session, folder):
            assert agrees(command.output, printed), (
                f"{page.name}, line {command.line}: $ {command.text}\n--- shown:\n"
                + "\n".join(command.output) + "\n--- printed:\n" + "\n".join(printed))
            done += 1
    finally:
        session.close()
    return done


def fill(page, folder, build, vfu):
    """Writes what commands print into a page, where it shows nothing."""
    session = Session(folder, build, vfu)
    lines = page.read_text().splitlines()
    try:
        for command, printed in reversed(list(steps(page, session, folder))):
            if not command.output:
                end = command.line + command.text.count("\n")
                lines[end:end] = printed
    finally:
        session.close()
    page.write_text("\n".join(lines) + "\n")
