"""What our dialplan needs of Asterisk: read from the file itself, so that neither can lag behind.

Asterisk takes a dialplan that names an application it does not have, and fails when a call gets
there. So each application and function of the file is looked up here: the module that has it must
run.
"""

import re
from collections.abc import Iterator, Mapping

from callcore import resources
from callcore.ami import Ami
from callcore.doctor.finding import Finding

#: Name of the file in ``dialplan/`` and in Asterisk's folder of configuration.
FILE = "extensions_callcore.conf"

#: Module -> what of it the dialplan uses, applications and functions.
MODULES: Mapping[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "app_audiosocket": "AudioSocket",
        "app_chanspy": "ChanSpy",
        "app_exec": "ExecIf TryExec",
        "app_mixmonitor": "MixMonitor StopMixMonitor",
        "app_originate": "Originate",
        "app_playback": "Playback",
        "app_read": "Read",
        "app_stack": "Gosub LOCAL Return STACK_PEEK",
        "app_verbose": "Log",
        "func_base64": "BASE64_ENCODE",
        "func_callerid": "CALLERID CONNECTEDLINE",
        "func_cdr": "CDR CDR_PROP",
        "func_channel": "CHANNEL CHANNEL_EXISTS",
        "func_cut": "CUT",
        "func_global": "SHARED",
        "func_logic": "IF",
        "func_strings": "FILTER LEN POP STRFTIME STRREPLACE",
        "func_uri": "URIENCODE",
        "func_uuid": "UUID",
        "res_agi": "AGI",
    }.items()
}
#: What the dialplan uses that Asterisk has without any module.
BUILT_IN = frozenset({"Answer", "Goto", "GotoIf", "Hangup", "Set", "Wait"})
#: Seconds that Asterisk may take to list a context.
_LIST_S = 5.0
#: Where ticks come from, of which ChanSpy and Playback need one.
TIMERS = ("res_timing_timerfd", "res_timing_dahdi", "res_timing_pthread", "res_timing_kqueue")

#: Extension, priority, label, application, and what that is told.
Step = tuple[str, int, str, str, str]

_CALL = re.compile(r"(?<![\w@/-])([A-Z]\w+)\(")
_COMMENT = re.compile(r"(?<!\\);.*")
_CONTEXT = re.compile(r"^\[([\w-]+)\]", re.MULTILINE)
_STEP = re.compile(r"\s*(?:exten|same)\s*=>\s*(?:([^,]+),1|n(?:\((\w+)\))?),(\w+)\((.*)\)\s*")
_SHOWN = re.compile(r"(\S+)\.so\s.*\s(Not Running|Running)\s")


def text() -> str:
    """Return the dialplan that came with this callcore, without comments.

    Raises:
        CallcoreError: If this installation does not have it.
    """
    return _COMMENT.sub("", (resources.path("dialplan") / FILE).read_text("utf-8"))


def contexts(dialplan: str) -> list[str]:
    """Return the names of its contexts."""
    return list(dict.fromkeys(_CONTEXT.findall(dialplan)))


def steps(dialplan: str) -> dict[str, list[Step]]:
    """Return what each of its contexts does."""
    found: dict[str, list[Step]] = {}
    exten, priority = "", 0
    here: list[Step] = []
    for line in dialplan.splitlines():
        if context := _CONTEXT.match(line):
            here = found.setdefault(context[1], [])
        elif step := _STEP.fullmatch(line):
            exten, priority = (step[1], 1) if step[1] else (exten, priority + 1)
            told = step[4].replace("\\;", ";").strip()
            here.append((exten, priority, step[2] or "", step[3], told))
    return {name: sorted(each) for name, each in found.items()}


def uses(dialplan: str) -> set[str]:
    """Return the applications and functions that it names."""
    return set(_CALL.findall(dialplan))


def needs(dialplan: str) -> dict[str, str]:
    """Return the modules that it needs, each with what it needs it for."""
    used = uses(dialplan)
    needed = {
        module: ", ".join(sorted(used & names)) for module, names in MODULES.items() if used & names
    }
    if "AudioSocket" in dialplan:
        needed["res_audiosocket"] = "AudioSocket"
    if "AudioSocket/" in dialplan:
        needed["chan_audiosocket"] = "taps"
    if ".wav" in dialplan:
        needed["format_wav"] = "recordings"
    if "slin16" in dialplan:
        needed["codec_resample"] = "taps of 16 kHz"
    return needed


def check_modules(ami: Ami) -> Iterator[Finding]:
    """Yield what Asterisk lacks of what our dialplan needs."""
    needed = needs(text())
    running = running_modules(ami)
    lacking = [module for module in needed if not running.get(module)]
    for module in lacking:
        known = "is loaded and does not run" if module in running else "is not loaded"
        yield Finding(
            "pbx-modules",
            "failed",
            f"{module} {known}: {needed[module]} will not work",
            _remedy(module, loaded=module in running),
        )
    if not any(running.get(module) for module in TIMERS):
        detail = "no timing module is loaded: taps and announcements stand still"
        yield Finding("pbx-modules", "failed", detail, _remedy(TIMERS[0], loaded=False))
    elif not lacking:
        yield Finding("pbx-modules", "ok", f"the {len(needed)} that the dialplan needs are loaded")


def running_modules(ami: Ami) -> dict[str, bool]:
    """Return the loaded modules, and whether each runs."""
    shown = (_SHOWN.match(line) for line in ami.command("module show"))
    return {match[1]: match[2] == "Running" for match in shown if match}


def _remedy(module: str, *, loaded: bool) -> str:
    if loaded:
        return f'`asterisk -rx "module reload {module}.so"` and Asterisk\'s log tell why'
    return (
        f'`asterisk -rx "module load {module}.so"`, and no `noload` of it in modules.conf; with\n'
        f"`autoload = no` there `load = {module}.so`. If the file is missing: on Debian\n"
        "`apt install asterisk-modules`, from source `make menuselect`"
    )


def check_contexts(ami: Ami) -> Iterator[Finding]:
    """Yield whether Asterisk has loaded our dialplan."""
    wanted = contexts(text())
    lacking = [name for name in wanted if not exists(ami, name)]
    file = resources.path("dialplan") / FILE
    if len(lacking) == len(wanted):
        remedy = (
            f"copy {file} to Asterisk's folder, end extensions.conf (FreePBX:\n"
            f"extensions_custom.conf) with the line `#include {FILE}`, then\n"
            '`asterisk -rx "dialplan reload"`'
        )
        yield Finding("pbx-dialplan", "failed", f"{FILE} is not loaded", remedy)
    elif lacking:
        remedy = f'copy {file} to Asterisk\'s folder again, then `asterisk -rx "dialplan reload"`'
        detail = f"an older {FILE} is loaded, without {', '.join(lacking)}"
        yield Finding("pbx-dialplan", "failed", detail, remedy)
    elif changed := [name for name, own in steps(text()).items() if own != loaded(ami, name)]:
        remedy = (
            f'copy {file} to Asterisk\'s folder again, then `asterisk -rx "dialplan reload"`;\n'
            "what you change belongs into your own extensions.conf"
        )
        detail = f"the {FILE} that is loaded is not this callcore's: it differs in "
        yield Finding("pbx-dialplan", "warning", detail + ", ".join(changed), remedy)
    else:
        yield Finding("pbx-dialplan", "ok", f"{FILE} is loaded, {len(wanted)} contexts")


def loaded(ami: Ami, context: str) -> list[Step]:
    """Return what a context of Asterisk's does."""
    asked = ami.action("ShowDialPlan", Context=context)["ActionID"]
    found: list[Step] = []

    def is_last(event: Mapping[str, str]) -> bool:
        if event.get("ActionID") == asked and event.get("Priority", "").isdigit():
            exten, priority = event["Extension"], int(event["Priority"])
            label, application = event.get("ExtensionLabel", ""), event["Application"]
            found.append((exten, priority, label, application, event.get("AppData", "")))
        return event.get("ActionID") == asked and event["Event"] == "ShowDialPlanComplete"

    ami.wait_for(is_last, _LIST_S)
    return sorted(found)


def exists(ami: Ami, context: str) -> bool:
    """Tell whether Asterisk has a context."""
    shown = ami.command(f"dialplan show {context}")
    return any(f"Context '{context}' created" in line for line in shown)
