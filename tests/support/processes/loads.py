"""Loads: many processes at once in one environment, with real distributions.

Each load is a function of a `LoadRun` and returns the violations that it found. If every command of a load pins all
that it touches, the result is compared with every serial order of the commands. If commands resolve, it is compared
with what plain pip does in every order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.processes.serial import Result, SerialOrders
from tests.support.processes.traffic import Command, Lane, Outcome, install, one_instant, uninstall
from tests.support.venvs.checker import Violation, check_wheel, installed
from tests.support.venvs.workspace import Load, LoadRun
from tests.support.wheels.tiny import Project
from tests.support.wheels.wheelhouse import NEW, NEW_BINARY, NEWEST_PIP, OLD, OLD_BINARY, OLDEST_PIP, SDISTS

OLD_PINS = {**OLD, **OLD_BINARY}
NEW_PINS = {**NEW, **NEW_BINARY}
REQUESTS = ("requests", "idna", "certifi", "urllib3", "charset-normalizer")
JINJA = ("jinja2", "markupsafe")
WEB = (*REQUESTS, *JINJA, "click", "attrs", "packaging", "six")
IDNA_MODULES = ("__init__", "codec", "compat", "core", "idnadata", "intranges", "package_data", "uts46data")
IDNA = {f"idna/{name}.py" for name in IDNA_MODULES}
SMALL = ("attrs", "packaging", "six", "click", "idna", "certifi")


def pins(projects: tuple[str, ...], versions: dict[str, str]) -> dict[str, str]:
    return {project: versions[project] for project in projects}


def same_set(processes: int) -> Load:
    def load(load_run: LoadRun) -> list[Violation]:
        """All processes install one set into an empty environment."""
        environment = load_run.environment()
        before = installed(environment)
        lanes = [[install(**pins(WEB, NEW_PINS))] for _ in range(processes)]
        return load_run.check_all(environment, before, load_run.run(environment, lanes))

    return load


def same_upgrade(processes: int) -> Load:
    def load(load_run: LoadRun) -> list[Violation]:
        """All processes upgrade one set."""
        environment = load_run.environment(*load_run.workspace.wheelhouse.old(*WEB, "pygments"))
        before = installed(environment)
        projects = (*WEB, "pygments")
        lanes = [[install("--upgrade", **pins(projects, NEW_PINS))] for _ in range(processes)]
        return load_run.check_all(environment, before, load_run.run(environment, lanes))

    return load


def overlapping_sets(load_run: LoadRun) -> list[Violation]:
    """Every process installs some projects of a pool by name, with their dependencies."""
    environment = load_run.environment()
    before = installed(environment)
    brings = {"requests": REQUESTS, "jinja2": JINJA}
    lanes: list[Lane] = []
    for _ in range(8):
        chosen = load_run.random.sample(["requests", "jinja2", *SMALL], load_run.random.randint(2, 5))
        every = {project for name in chosen for project in brings.get(name, (name,))}
        lanes.append([Command(("install", *chosen), pins(tuple(sorted(every)), NEW_PINS))])
    return load_run.check_all(environment, before, load_run.run(environment, lanes))


def pool_versions(load_run: LoadRun) -> list[Violation]:
    """Every process upgrades and downgrades some projects of a pool, several times."""
    environment = load_run.environment(*load_run.workspace.wheelhouse.old(*WEB))
    before = installed(environment)

    def move() -> Command:
        versions = load_run.random.choice((OLD_PINS, NEW_PINS))
        chosen = load_run.random.sample(
            [("requests",), JINJA, *((name,) for name in SMALL)], load_run.random.randint(1, 4)
        )
        return install(**pins(tuple(name for family in chosen for name in family), versions))

    lanes = [[move() for _ in range(2)] for _ in range(8)]
    return load_run.check_all(environment, before, load_run.run(environment, lanes))


def readers(load_run: LoadRun) -> list[Violation]:
    """Families are installed, moved and removed as a whole while others list them all the while."""
    families = [[pins(JINJA, OLD_PINS), pins(JINJA, NEW_PINS)], [pins(("six",), OLD_PINS), pins(("six",), NEW_PINS)]]
    families.append(_twins(load_run))
    environment = load_run.environment()
    before = installed(environment)

    def change() -> Command:
        family = load_run.random.choice(families)
        generation = load_run.random.choice(family)
        return load_run.random.choice([install(**generation), install(**generation), uninstall(*generation)])

    looks = one_instant(families)
    lanes: list[Lane] = [[change() for _ in range(5)] for _ in range(3)]
    lanes += [[load_run.random.choice(looks) for _ in range(6)] for _ in range(3)]
    return load_run.check_all(environment, before, load_run.run(environment, lanes))


def _twins(load_run: LoadRun) -> list[dict[str, str]]:
    """Two projects of which neither is any use without the other, with files everywhere; their generations."""
    for version in ("1", "2", "3"):
        scripts, data = {"left": "left:main"}, {"share/left.txt": version}
        Project("left", version, (f"right=={version}",), console_scripts=scripts, data=data).write_wheel(load_run.index)
        files = {f"right/{name}.py": f"version = {version!r}\n" for name in ("__init__", "a", "b", f"only{version}")}
        Project("right", version, (f"left=={version}",), files=files).write_wheel(load_run.index)
    return [{"left": version, "right": version} for version in ("1", "2", "3")]


def pip_switched(load_run: LoadRun) -> list[Violation]:
    """pip itself is switched between two versions while others install, remove and list."""
    environment = load_run.environment()
    before = installed(environment)
    families = [(name,) for name in SMALL] + [JINJA]

    def change() -> Command:
        chosen = pins(load_run.random.choice(families), load_run.random.choice((OLD_PINS, NEW_PINS)))
        return load_run.random.choice([install(**chosen), install(**chosen), uninstall(*chosen)])

    switch = [install("--force-reinstall", pip=version) for version in (OLDEST_PIP, NEWEST_PIP)]
    looks = [Command(("list",)), Command(("--version",)), Command(("check",)), Command(("freeze",))]
    lanes: list[Lane] = [switch, list(reversed(switch))]
    lanes += [[change() for _ in range(3)] for _ in range(4)]
    lanes.append([load_run.random.choice(looks) for _ in range(6)])
    return load_run.check_all(environment, before, load_run.run(environment, lanes))


def unisolated_builds(load_run: LoadRun) -> list[Violation]:
    """Builds import setuptools from the environment while it is reinstalled in a loop."""
    environment = load_run.environment(*load_run.workspace.wheelhouse.new("setuptools", "wheel"))
    before = installed(environment)
    options = ("--no-build-isolation", "--no-deps", "--no-cache-dir")

    def build(number: int) -> Command:
        directory = str(load_run.directory / "built" / str(number))
        return Command(("wheel", *options, "--no-binary", "six", "-w", directory, f"six=={SDISTS['six']}"))

    versions = [load_run.random.choice((OLD_PINS, NEW_PINS)) for _ in range(4)]
    lanes: list[Lane] = [
        [install("--force-reinstall", "--no-deps", **pins(("setuptools",), each)) for each in versions]
    ]
    lanes += [[build(lane * 10 + turn) for turn in range(2)] for lane in range(3)]
    outcomes = load_run.run(environment, lanes)
    return load_run.check_all(environment, before, outcomes) + built(load_run, outcomes, {"six.py"})


def sdist_builds(processes: int) -> Load:
    def load(load_run: LoadRun) -> list[Violation]:
        """All processes build one sdist, isolated, with an empty cache. Half of them install it."""
        environment = load_run.environment()
        before = installed(environment)
        sdist, version = "idna", SDISTS["idna"]

        def lane(number: int) -> Lane:
            options = ("--no-binary", sdist)
            if number % 2:
                return [install(*options, **{sdist: version})]
            directory = str(load_run.directory / "built" / str(number))
            return [Command(("wheel", *options, "-w", directory, f"{sdist}=={version}"))]

        outcomes = load_run.run(
            environment, [lane(number) for number in range(processes)], load_run.variables_with_empty_cache
        )
        return load_run.check_all(environment, before, outcomes) + built(load_run, outcomes, IDNA)

    return load


def tree_builds(processes: int) -> Load:
    def load(load_run: LoadRun) -> list[Violation]:
        """All processes build one source tree with setuptools, isolated, with an empty cache. Half install it."""
        modules = {f"sapling_{number}.py": f"x = {number}\n" for number in range(30)}
        project = Project("sapling", "1", files=modules)
        tree = str(project.write_source_tree(load_run.directory / "tree", backend="setuptools"))
        environment = load_run.environment()
        before = installed(environment)

        def lane(number: int) -> Lane:
            if number % 2:
                return [Command(("install", "--force-reinstall", tree), {"sapling": "1"})]
            return [Command(("wheel", "-w", str(load_run.directory / "built" / str(number)), tree))]

        outcomes = load_run.run(
            environment, [lane(number) for number in range(processes)], load_run.variables_with_empty_cache
        )
        return load_run.check_all(environment, before, outcomes) + built(load_run, outcomes, set(modules))

    return load


def built(load_run: LoadRun, outcomes: list[Outcome], modules: set[str]) -> list[Violation]:
    """Violations of the built wheels: each must be complete and have exactly these modules."""
    found = []
    for outcome in outcomes:
        if outcome.status == 0 and outcome.command.arguments[0] == "wheel":
            directory = Path(outcome.command.arguments[outcome.command.arguments.index("-w") + 1])
            wheels = sorted(directory.glob("*.whl"))
            if len(wheels) != 1:
                found.append(Violation("wrong-build", f"{outcome.label} made {[wheel.name for wheel in wheels]}"))
            found += [violation for wheel in wheels for violation in check_wheel(wheel, modules)]
    return found


def either_order(load_run: LoadRun) -> list[Violation]:
    """Two installs, each of which would decide otherwise after the other."""
    projects = [Project("aaa", "1"), Project("aaa", "2", ("bbb==1",)), Project("bbb", "1")]
    projects.append(Project("bbb", "2", ("aaa==1",)))
    return _as_serial(load_run, projects, [], [("install", "aaa"), ("install", "bbb")])


def requirement_moved(load_run: LoadRun) -> list[Violation]:
    """A satisfied requirement of one command is upgraded or removed by others."""
    projects = [Project("lib", version) for version in ("1", "2", "3")]
    projects += [Project("app", "1", ("lib<3",)), Project("tool", "1", ("lib",), extras={"new": ("lib>=2",)})]
    commands = [("install", "app"), ("install", "--upgrade", "lib"), ("uninstall", "-y", "lib")]
    return _as_serial(load_run, projects, [Project("lib", "1")], load_run.random.sample(commands, 3))


def random_resolves(load_run: LoadRun) -> list[Violation]:
    """A random little index and three random commands on it."""
    names, versions = ["ant", "bee", "cow", "dog"], ["1", "2", "3"]

    def requires(name: str) -> tuple[str, ...]:
        others = load_run.random.sample([other for other in names if other != name], load_run.random.randint(0, 2))
        return tuple(
            f"{other}{load_run.random.choice(['==', '<=', '>=', '!='])}{load_run.random.choice(versions)}"
            for other in others
        )

    projects = [Project(name, version, requires(name)) for name in names for version in versions]
    choices: list[Callable[[], tuple[str, ...]]] = [
        lambda: ("install", *load_run.random.sample(names, load_run.random.randint(1, 2))),
        lambda: ("install", f"{load_run.random.choice(names)}=={load_run.random.choice(versions)}"),
        lambda: ("install", "--upgrade", load_run.random.choice(names)),
        lambda: ("uninstall", "-y", *load_run.random.sample(names, load_run.random.randint(1, 2))),
    ]
    there = [load_run.random.choice(projects)] if load_run.random.random() < 0.5 else []
    return _as_serial(load_run, projects, there, [load_run.random.choice(choices)() for _ in range(3)])


def _as_serial(
    load_run: LoadRun, projects: list[Project], there: list[Project], commands: list[tuple[str, ...]]
) -> list[Violation]:
    """Run commands at once and compare the result and the exit statuses with every serial order of plain pip."""
    for project in projects:
        project.write_wheel(load_run.index)
    variables = load_run.variables | {"PIP_FIND_LINKS": str(load_run.index)}
    environment = load_run.environment()
    load_run.preinstall(environment, [project.write_wheel(load_run.index) for project in there])
    orders = SerialOrders(load_run.workspace.maker, variables, load_run.directory / "serial")
    initial = load_run.workspace.maker.copy(environment, load_run.directory / "initial")
    lanes = [[Command(command, statuses=(0, 1))] for command in commands]
    outcomes = load_run.run(environment, lanes, variables)
    ran = sorted((outcome for outcome in outcomes if outcome.status != 75), key=lambda outcome: outcome.lane)
    results = orders.results(initial, [outcome.command.arguments for outcome in ran])
    result = Result(frozenset(installed(environment).items()), tuple(outcome.status for outcome in ran))
    found = load_run.check(environment, outcomes, pip_check=False)
    if result not in results:
        shown = "; ".join(sorted(map(str, results)))
        index = ", ".join(f"{project.stem} needs {list(project.requires)}" for project in projects if project.requires)
        found.append(Violation("no-serial-order", f"of {commands} gives {result}, but {shown}. Index: {index}"))
    return found


LOADS: dict[str, Load] = {
    "same-set-8": same_set(8),
    "same-set-16": same_set(16),
    "same-upgrade-8": same_upgrade(8),
    "same-upgrade-16": same_upgrade(16),
    "overlapping-sets": overlapping_sets,
    "pool-versions": pool_versions,
    "readers": readers,
    "pip-switched": pip_switched,
    "unisolated-builds": unisolated_builds,
    "sdist-builds-8": sdist_builds(8),
    "tree-builds-8": tree_builds(8),
    "either-order": either_order,
    "requirement-moved": requirement_moved,
    "random-resolves": random_resolves,
}
