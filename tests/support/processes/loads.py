"""The loads that are run again and again: real distributions, many processes, one environment.

Each is a function of a scene that returns the violations it found. Where commands pin all that they touch, the result
is held against every serial order; where they resolve, against what plain pip makes of every order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.processes.serial import Result, SerialOrders
from tests.support.processes.traffic import Command, Lane, Outcome, install, one_instant, uninstall
from tests.support.venvs.checker import Violation, check_wheel, installed
from tests.support.venvs.workspace import Experiment, Scene
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


def same_set(processes: int) -> Experiment:
    def experiment(scene: Scene) -> list[Violation]:
        """Everybody installs the same set into an empty environment."""
        environment = scene.environment()
        before = installed(environment)
        lanes = [[install(**pins(WEB, NEW_PINS))] for _ in range(processes)]
        return scene.settle(environment, before, scene.run(environment, lanes))

    return experiment


def same_upgrade(processes: int) -> Experiment:
    def experiment(scene: Scene) -> list[Violation]:
        """Everybody upgrades the same set."""
        environment = scene.environment(*scene.laboratory.wheelhouse.old(*WEB, "pygments"))
        before = installed(environment)
        projects = (*WEB, "pygments")
        lanes = [[install("--upgrade", **pins(projects, NEW_PINS))] for _ in range(processes)]
        return scene.settle(environment, before, scene.run(environment, lanes))

    return experiment


def overlapping_sets(scene: Scene) -> list[Violation]:
    """Everybody installs some of a pool, by name; dependencies come along."""
    environment = scene.environment()
    before = installed(environment)
    brings = {"requests": REQUESTS, "jinja2": JINJA}
    lanes: list[Lane] = []
    for _ in range(8):
        chosen = scene.random.sample(["requests", "jinja2", *SMALL], scene.random.randint(2, 5))
        every = {project for name in chosen for project in brings.get(name, (name,))}
        lanes.append([Command(("install", *chosen), pins(tuple(sorted(every)), NEW_PINS))])
    return scene.settle(environment, before, scene.run(environment, lanes))


def pool_versions(scene: Scene) -> list[Violation]:
    """Everybody moves some of a pool up or down, again and again."""
    environment = scene.environment(*scene.laboratory.wheelhouse.old(*WEB))
    before = installed(environment)

    def move() -> Command:
        versions = scene.random.choice((OLD_PINS, NEW_PINS))
        chosen = scene.random.sample([("requests",), JINJA, *((name,) for name in SMALL)], scene.random.randint(1, 4))
        return install(**pins(tuple(name for family in chosen for name in family), versions))

    lanes = [[move() for _ in range(3)] for _ in range(8)]
    return scene.settle(environment, before, scene.run(environment, lanes))


def readers(scene: Scene) -> list[Violation]:
    """Families are installed, moved and removed as a whole while others list them all the while."""
    families = [[pins(JINJA, OLD_PINS), pins(JINJA, NEW_PINS)], [pins(("six",), OLD_PINS), pins(("six",), NEW_PINS)]]
    families.append(_twins(scene))
    environment = scene.environment()
    before = installed(environment)

    def change() -> Command:
        family = scene.random.choice(families)
        generation = scene.random.choice(family)
        return scene.random.choice([install(**generation), install(**generation), uninstall(*generation)])

    looks = one_instant(families)
    lanes: list[Lane] = [[change() for _ in range(6)] for _ in range(4)]
    lanes += [[scene.random.choice(looks) for _ in range(9)] for _ in range(4)]
    return scene.settle(environment, before, scene.run(environment, lanes))


def _twins(scene: Scene) -> list[dict[str, str]]:
    """Two projects of which neither is any use without the other, with files everywhere; their generations."""
    for version in ("1", "2", "3"):
        scripts, data = {"left": "left:main"}, {"share/left.txt": version}
        Project("left", version, (f"right=={version}",), console_scripts=scripts, data=data).write_wheel(scene.index)
        files = {f"right/{name}.py": f"version = {version!r}\n" for name in ("__init__", "a", "b", f"only{version}")}
        Project("right", version, (f"left=={version}",), files=files).write_wheel(scene.index)
    return [{"left": version, "right": version} for version in ("1", "2", "3")]


def pip_switched(scene: Scene) -> list[Violation]:
    """pip itself is switched between two versions while others install, remove and list."""
    environment = scene.environment()
    before = installed(environment)
    families = [(name,) for name in SMALL] + [JINJA]

    def change() -> Command:
        chosen = pins(scene.random.choice(families), scene.random.choice((OLD_PINS, NEW_PINS)))
        return scene.random.choice([install(**chosen), install(**chosen), uninstall(*chosen)])

    switch = [install("--force-reinstall", pip=version) for version in (OLDEST_PIP, NEWEST_PIP)]
    looks = [Command(("list",)), Command(("--version",)), Command(("check",)), Command(("freeze",))]
    lanes: list[Lane] = [switch * 2, list(reversed(switch)) * 2]
    lanes += [[change() for _ in range(5)] for _ in range(5)]
    lanes.append([scene.random.choice(looks) for _ in range(8)])
    return scene.settle(environment, before, scene.run(environment, lanes))


def unisolated_builds(scene: Scene) -> list[Violation]:
    """Builds import setuptools from the environment while it is reinstalled in a loop."""
    environment = scene.environment(*scene.laboratory.wheelhouse.new("setuptools", "wheel"))
    before = installed(environment)
    options = ("--no-build-isolation", "--no-deps", "--no-cache-dir")

    def build(number: int) -> Command:
        directory = str(scene.directory / "built" / str(number))
        return Command(("wheel", *options, "--no-binary", "six", "-w", directory, f"six=={SDISTS['six']}"))

    versions = [scene.random.choice((OLD_PINS, NEW_PINS)) for _ in range(5)]
    lanes: list[Lane] = [
        [install("--force-reinstall", "--no-deps", **pins(("setuptools",), each)) for each in versions]
    ]
    lanes += [[build(lane * 10 + turn) for turn in range(2)] for lane in range(6)]
    outcomes = scene.run(environment, lanes)
    return scene.settle(environment, before, outcomes) + built(scene, outcomes, {"six.py"})


def sdist_builds(processes: int) -> Experiment:
    def experiment(scene: Scene) -> list[Violation]:
        """Everybody builds the same sdist, isolated, with an empty cache; half of them install what they built."""
        environment = scene.environment()
        before = installed(environment)
        sdist, version = "idna", SDISTS["idna"]

        def lane(number: int) -> Lane:
            options = ("--no-binary", sdist)
            if number % 2:
                return [install(*options, **{sdist: version})]
            directory = str(scene.directory / "built" / str(number))
            return [Command(("wheel", *options, "-w", directory, f"{sdist}=={version}"))]

        outcomes = scene.run(environment, [lane(number) for number in range(processes)], scene.cold)
        return scene.settle(environment, before, outcomes) + built(scene, outcomes, IDNA)

    return experiment


def tree_builds(processes: int) -> Experiment:
    def experiment(scene: Scene) -> list[Violation]:
        """Everybody builds one local source tree with setuptools, isolated, with an empty cache; half install it."""
        modules = {f"sapling_{number}.py": f"x = {number}\n" for number in range(30)}
        project = Project("sapling", "1", files=modules)
        tree = str(project.write_source_tree(scene.directory / "tree", backend="setuptools"))
        environment = scene.environment()
        before = installed(environment)

        def lane(number: int) -> Lane:
            if number % 2:
                return [Command(("install", "--force-reinstall", tree), {"sapling": "1"})]
            return [Command(("wheel", "-w", str(scene.directory / "built" / str(number)), tree))]

        outcomes = scene.run(environment, [lane(number) for number in range(processes)], scene.cold)
        return scene.settle(environment, before, outcomes) + built(scene, outcomes, set(modules))

    return experiment


def built(scene: Scene, outcomes: list[Outcome], modules: set[str]) -> list[Violation]:
    """What is wrong with the wheels that were built: each must be whole and have exactly these modules."""
    found = []
    for outcome in outcomes:
        if outcome.status == 0 and outcome.command.arguments[0] == "wheel":
            directory = Path(outcome.command.arguments[outcome.command.arguments.index("-w") + 1])
            wheels = sorted(directory.glob("*.whl"))
            if len(wheels) != 1:
                found.append(Violation("wrong-build", f"{outcome.label} made {[wheel.name for wheel in wheels]}"))
            found += [violation for wheel in wheels for violation in check_wheel(wheel, modules)]
    return found


def either_order(scene: Scene) -> list[Violation]:
    """Two installs each of which would decide otherwise had it seen the other."""
    projects = [Project("aaa", "1"), Project("aaa", "2", ("bbb==1",)), Project("bbb", "1")]
    projects.append(Project("bbb", "2", ("aaa==1",)))
    return _as_serial(scene, projects, [], [("install", "aaa"), ("install", "bbb")])


def requirement_moved(scene: Scene) -> list[Violation]:
    """What one command finds satisfied is upgraded or removed by others."""
    projects = [Project("lib", version) for version in ("1", "2", "3")]
    projects += [Project("app", "1", ("lib<3",)), Project("tool", "1", ("lib",), extras={"new": ("lib>=2",)})]
    commands = [("install", "app"), ("install", "--upgrade", "lib"), ("uninstall", "-y", "lib")]
    return _as_serial(scene, projects, [Project("lib", "1")], scene.random.sample(commands, 3))


def random_resolves(scene: Scene) -> list[Violation]:
    """A random little index and three random commands on it."""
    names, versions = ["ant", "bee", "cow", "dog"], ["1", "2", "3"]

    def requires(name: str) -> tuple[str, ...]:
        others = scene.random.sample([other for other in names if other != name], scene.random.randint(0, 2))
        return tuple(
            f"{other}{scene.random.choice(['==', '<=', '>=', '!='])}{scene.random.choice(versions)}" for other in others
        )

    projects = [Project(name, version, requires(name)) for name in names for version in versions]
    choices: list[Callable[[], tuple[str, ...]]] = [
        lambda: ("install", *scene.random.sample(names, scene.random.randint(1, 2))),
        lambda: ("install", f"{scene.random.choice(names)}=={scene.random.choice(versions)}"),
        lambda: ("install", "--upgrade", scene.random.choice(names)),
        lambda: ("uninstall", "-y", *scene.random.sample(names, scene.random.randint(1, 2))),
    ]
    there = [scene.random.choice(projects)] if scene.random.random() < 0.5 else []
    return _as_serial(scene, projects, there, [scene.random.choice(choices)() for _ in range(3)])


def _as_serial(
    scene: Scene, projects: list[Project], there: list[Project], commands: list[tuple[str, ...]]
) -> list[Violation]:
    """Run commands at once and hold what they leave, and say, against every serial order of plain pip."""
    for project in projects:
        project.write_wheel(scene.index)
    variables = scene.variables | {"PIP_FIND_LINKS": str(scene.index)}
    environment = scene.environment()
    scene.preinstall(environment, [project.write_wheel(scene.index) for project in there])
    orders = SerialOrders(scene.laboratory.maker, variables, scene.directory / "serial")
    initial = scene.laboratory.maker.copy(environment, scene.directory / "initial")
    lanes = [[Command(command, statuses=(0, 1))] for command in commands]
    outcomes = scene.run(environment, lanes, variables)
    ran = sorted((outcome for outcome in outcomes if outcome.status != 75), key=lambda outcome: outcome.lane)
    results = orders.results(initial, [outcome.command.arguments for outcome in ran])
    result = Result(frozenset(installed(environment).items()), tuple(outcome.status for outcome in ran))
    found = scene.check(environment, outcomes, pip_check=False)
    if result not in results:
        shown = "; ".join(sorted(map(str, results)))
        index = ", ".join(f"{project.stem} needs {list(project.requires)}" for project in projects if project.requires)
        found.append(Violation("no-serial-order", f"of {commands} gives {result}, but {shown}. Index: {index}"))
    return found


ROUNDS: dict[str, Experiment] = {
    "same-set-8": same_set(8),
    "same-set-16": same_set(16),
    "same-upgrade-8": same_upgrade(8),
    "same-upgrade-16": same_upgrade(16),
    "overlapping-sets": overlapping_sets,
    "pool-versions": pool_versions,
    "readers": readers,
    "pip-switched": pip_switched,
    "unisolated-builds": unisolated_builds,
    "sdist-builds-16": sdist_builds(16),
    "tree-builds-8": tree_builds(8),
    "either-order": either_order,
    "requirement-moved": requirement_moved,
    "random-resolves": random_resolves,
}
