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

#: Module -> its applications and functions. Others that a dialplan may use are in Asterisk itself.
MODULES: Mapping[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "app_audiosocket": "AudioSocket",
        "app_chanspy": "ChanSpy",
        "app_dial": "Dial RetryDial",
        "app_exec": "Exec TryExec ExecIf",
        "app_mixmonitor": "MixMonitor StopMixMonitor",
        "app_originate": "Originate",
        "app_playback": "Playback",
        "app_queue": "Queue",
        "app_read": "Read",
        "app_stack": "Gosub GosubIf Return StackPop LOCAL STACK_PEEK",
        "app_userevent": "UserEvent",
        "app_verbose": "Log Verbose",
        "app_while": "While EndWhile ExitWhile ContinueWhile",
        "func_base64": "BASE64_ENCODE BASE64_DECODE",
        "func_callerid": "CALLERID CONNECTEDLINE REDIRECTING",
        "func_cdr": "CDR CDR_PROP",
        "func_channel": "CHANNEL CHANNELS MASTER_CHANNEL CHANNEL_EXISTS",
        "func_cut": "CUT SORT",
        "func_db": "DB DB_EXISTS DB_DELETE",
        "func_dialplan": "DIALPLAN_EXISTS VALID_EXTEN",
        "func_export": "EXPORT",
        "func_global": "GLOBAL SHARED GLOBAL_DELETE SHARED_DELETE",
        "func_groupcount": "GROUP GROUP_COUNT GROUP_LIST GROUP_MATCH_COUNT",
        "func_hangupcause": "HANGUPCAUSE HANGUPCAUSE_KEYS HangupCauseClear",
        "func_import": "IMPORT",
        "func_logic": "IF IFTIME ISNULL EXISTS SET IMPORT",
        "func_math": "MATH INC DEC MIN MAX ABS",
        "func_rand": "RAND",
        "func_sprintf": "SPRINTF",
        "func_strings": "LEN FILTER REPLACE STRREPLACE STRFTIME STRPTIME STRBETWEEN REGEX FIELDQTY "
        "FIELDNUM LISTFILTER TOUPPER TOLOWER EVAL HASH HASHKEYS CLEARHASH PASSTHRU QUOTE SHIFT POP "
        "PUSH UNSHIFT KEYPADHASH TRIM LTRIM RTRIM CSV_QUOTE",
        "func_timeout": "TIMEOUT",
        "func_uri": "URIENCODE URIDECODE",
        "func_uuid": "UUID",
        "res_agi": "AGI EAGI DeadAGI",
    }.items()
}
#: Applications and functions that Asterisk has without any module.
BUILT_IN = frozenset(
    {"Answer", "Background", "Busy", "Congestion", "EXCEPTION", "FEATURE", "Goto", "GotoIf"}
    | {"Hangup", "MSet", "NoOp", "Proceeding", "Progress", "RaiseException", "Ringing", "Set"}
    | {"Wait", "WaitExten"}
)
#: Where ticks come from, of which ChanSpy and Playback need one.
TIMERS = ("res_timing_timerfd", "res_timing_dahdi", "res_timing_pthread", "res_timing_kqueue")

_CALL = re.compile(r"(?<![\w@/-])([A-Z]\w+)\(")
_COMMENT = re.compile(r"(?<!\\);.*")
_CONTEXT = re.compile(r"^\[([\w-]+)\]", re.MULTILINE)
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
    else:
        yield Finding("pbx-dialplan", "ok", f"{FILE} is loaded, {len(wanted)} contexts")


def exists(ami: Ami, context: str) -> bool:
    """Tell whether Asterisk has a context."""
    shown = ami.command(f"dialplan show {context}")
    return any(f"Context '{context}' created" in line for line in shown)
