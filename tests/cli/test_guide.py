"""The guide and README: every page is printed, every link leads somewhere, every command parses."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer import Exit
from typer._click.exceptions import MissingParameter, NoArgsIsHelpError, NoSuchOption
from typer.main import get_command
from typer.testing import CliRunner

import cogedit
from cogedit import errors
from cogedit.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "cogedit" / "guide").glob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]

README_LINES = 170
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def guide(*args):
    return CliRunner().invoke(app, ["guide", *args])


def names(pages):
    return [pytest.param(page, id=page.name) for page in pages]


def test_topics_are_listed_with_a_line_each():
    listed = guide()
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [page.stem for page in PAGES]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("page", names(PAGES))
def test_a_page_is_printed_as_it_is_where_there_is_no_terminal(page):
    assert guide(page.stem).stdout == page.read_text()


def test_an_unknown_topic_is_refused_with_what_is_near():
    refused = guide("mask")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "masks" in refused.stderr
    assert guide("zebra").exit_code == 2


def test_topics_are_completed():
    command = get_command(app).commands["guide"]  # type: ignore[attr-defined]
    [param] = [param for param in command.params if param.name == "topic"]
    context = command.make_context("guide", [])
    assert [item.value for item in param.shell_complete(context, "mas")] == ["masks"]


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", names(TEXTS))
def test_relative_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http:", "https:")):
            continue
        place, _, anchor = target.partition("#")
        linked = (page.parent / place).resolve() if place else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in headings(linked), target


def commands_of(text):
    """The `cogedit` command lines of a page, and whether each is whole.

    Those in shell blocks are; in running text the arguments may be missing.
    """
    shells = [body for language, body in FENCE.findall(text) if language == "sh"]
    lines = "\n".join(shells).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`(cogedit [^`]+)`", FENCE.sub("", text).replace("\n", " "))
    for line, is_whole in [*((line, True) for line in lines), *((span, False) for span in spans)]:
        for found in re.findall(r"(?<![\w/.-])cogedit (?=[a-z])[^|;)]*", line):
            yield shlex.split(found, comments=True)[1:], is_whole


def parse(args, *, is_whole):
    """Parse a command line by the real parser, as far as it goes without running anything."""
    command, path, rest = get_command(app), "cogedit", list(args)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        path = f"{path} {rest[0]}"
        command = command.commands[rest.pop(0)]
    try:
        command.make_context(path, rest or ["--help"])
    except Exit:  # --help
        pass
    except NoArgsIsHelpError:
        assert not is_whole
    except MissingParameter:
        assert not is_whole, args


def help_texts(command):
    yield command.help or ""
    for below in getattr(command, "commands", {}).values():
        yield from help_texts(below)


def shown_commands():
    for text in help_texts(get_command(app)):
        for line in re.findall(r"Example: cogedit (.*)", text):
            yield pytest.param(shlex.split(line), True, id=f"help: {line}")
    for page in TEXTS:
        for args, is_whole in commands_of(page.read_text()):
            yield pytest.param(args, is_whole, id=f"{page.stem}: {' '.join(args)}")


@pytest.mark.parametrize(("args", "is_whole"), [*shown_commands()])
def test_every_command_that_is_shown_parses(args, is_whole, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parse(args, is_whole=is_whole)


def test_a_command_that_does_not_parse_is_found():
    [(args, is_whole)] = commands_of("```sh\ncogedit edit a.mp4 --promt x  # no such option\n```")
    with pytest.raises(NoSuchOption):
        parse(args, is_whole=is_whole)


@pytest.mark.parametrize("page", names(TEXTS))
def test_python_that_is_shown_uses_names_that_are_there(page):
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, page.name, "exec")
            assert set(re.findall(r"\bcogedit\.(\w+)", body)) <= set(cogedit.__all__)


SCRIPTS = [
    pytest.param(language, body, id=f"{page.stem}: {language}")
    for page in TEXTS
    for language, body in FENCE.findall(page.read_text())
    if language in ("bash", "yaml")
]


@pytest.mark.parametrize(("language", "body"), SCRIPTS)
def test_scripts_for_clusters_are_sound(language, body, tmp_path):
    if language == "bash":
        (tmp_path / "job.sh").write_text(body)
        subprocess.run([shutil.which("bash"), "-n", tmp_path / "job.sh"], check=True)
        commands = body
    else:
        job = yaml.safe_load(body)
        cluster = job["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        mounted = {
            mount["mountPath"]
            for group in groups
            for container in group["template"]["spec"]["containers"]
            for mount in container["volumeMounts"]
        }
        assert (job["kind"], len(mounted)) == ("RayJob", 1)
        commands = job["spec"]["entrypoint"].replace('"', "")
    [(args, is_whole)] = commands_of(f"```sh\n{commands}\n```")
    parse(args, is_whole=is_whole)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_exit_codes_are_those_of_the_errors():
    def codes(kind):
        return {kind.exit_code} | {code for below in kind.__subclasses__() for code in codes(below)}

    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "cogedit/guide/exit-codes.md").read_text(), re.M)
    listed = {int(code) for row in rows for code in row.split(",")}
    assert listed == {0} | codes(errors.CogeditError)
