"""The completion scripts themselves, one function per shell.

Each is a frame of shell code with tables filled in. Texts of the program stand in single quotes
only, where no shell expands anything; zsh reads a second language inside them, so there they are
escaped for that one first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osp_cli.cli.description import Argument, Command, Option, Values

    Known = Mapping[str, Values]

_HEADER = "# Completion of osp for {}. Written by `osp completion`: changes made here get lost."

_BASH = r"""@HEADER@

# The words among $2... that begin with $1.
_osp_words() {
    local word
    for word in "${@:2}"; do
        if [[ $word == "$1"* ]]; then COMPREPLY+=("$(printf %q "$word")"); fi
    done
}

# Folders, and the files that fit one of the patterns $2..., that begin with $1.
_osp_files() {
    local path pattern start=$1
    # What was typed may be quoted; readline quotes what it puts there by itself.
    case $start in
        [\'\"]*) start=${start:1} ;;
        *) start=${start//\\/} ;;
    esac
    compopt -o filenames 2>/dev/null
    while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen -d -- "$start")
    while IFS= read -r path; do
        for pattern in "${@:2}"; do
            if [[ $path == $pattern && ! -d $path ]]; then
                COMPREPLY+=("$path")
                break
            fi
        done
    done < <(compgen -f -- "$start")
}

# Whether the option $2 of the command $1 takes a value.
_osp_takes_value() {
    case "$1 $2" in
        @VALUED@) return 0 ;;
    esac
    return 1
}

# The values, beginning with $3, of the option $2 of the command $1.
_osp_values() {
    case "$1 $2" in
@VALUES@
    esac
}

# The options, beginning with $2, of the command $1.
_osp_options() {
    case $1 in
@OPTIONS@
    esac
}

# Whether there is a command $2 inside the command $1.
_osp_has_inside() {
    case "$1 $2" in
        @INSIDE@) return 0 ;;
    esac
    return 1
}

# The values, beginning with $3, of argument number $2 of the command $1.
_osp_arguments() {
    case "$1 $2" in
@ARGUMENTS@
    esac
}

_osp() {
    local IFS=$' \t\n' raw=${COMP_WORDS[COMP_CWORD]} index word glue= cur value before= add=
    local command= waiting= ended= place=0
    local -a words
    words=()
    COMPREPLY=()
    # Bash takes words apart at = and :, here they are put together again.
    for ((index = 1; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ ${#words[@]} -gt 0 && -n $word && (-n $glue || $word =~ ^[:=]+$) ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words[${#words[@]}]=$word
        fi
        if [[ $word =~ ^[:=]+$ ]]; then glue=1; else glue=; fi
    done
    cur=${words[${#words[@]} - 1]}
    for word in "${words[@]:0:${#words[@]}-1}"; do
        if [[ -n $waiting ]]; then
            waiting=
        elif [[ -z $ended && $word == -- ]]; then
            ended=1
        elif [[ -z $ended && $word == -?* ]]; then
            if _osp_takes_value "$command" "$word"; then waiting=$word; fi
        elif [[ -z $command ]]; then
            command=$word
        elif [[ $place == 0 ]] && _osp_has_inside "$command" "$word"; then
            command="$command $word"
        else
            place=$((place + 1))
        fi
    done
    value=$cur
    if [[ -z $waiting && -z $ended && $cur == --*=* ]]; then
        waiting=${cur%%=*}
        value=${cur#*=}
        if [[ $raw == "$cur" ]]; then add=$waiting=; fi
    fi
    # Readline replaces only what follows the last = or :.
    if [[ $raw =~ ^[:=]+$ ]]; then
        before=$value
    elif [[ -z $add ]]; then
        before=${value%"$raw"}
    fi
    if [[ -n $waiting ]]; then
        _osp_values "$command" "$waiting" "$value"
    elif [[ -z $ended && $cur == -* ]]; then
        _osp_options "$command" "$cur"
    else
        _osp_arguments "$command" "$place" "$value"
    fi
    for index in "${!COMPREPLY[@]}"; do
        COMPREPLY[index]=$add${COMPREPLY[index]#"$before"}
    done
}

complete -F _osp osp
"""

_ZSH = r"""#compdef osp
@HEADER@

@FUNCTIONS@

_osp() {
    local curcontext=$curcontext context state state_descr line ret=1
    typeset -A opt_args
    _arguments -C -s -S \
        @OUTER@ \
        '1: :_osp_commands' \
        '*:: :->rest' && ret=0
    if [[ $state == rest ]]; then
        curcontext="${curcontext%:*:*}:osp-$words[1]:"
        case $words[1] in
@BRANCHES@
        esac
    fi
    return ret
}

# Read by the completion system as a function, or by hand with `source`.
if [[ $funcstack[1] == _osp ]]; then
    _osp "$@"
else
    compdef _osp osp
fi
"""

_FISH = r"""@HEADER@

# The command, osp for none yet, and how many arguments it has got.
function __osp_place
    set -l valued @VALUED@
    set -l nested @INSIDE@
    set -l words (commandline -opc)
    set -e words[1]
    set -l inside osp
    set -l place 0
    set -l waiting 0
    set -l ended 0
    for word in $words
        if test $waiting = 1
            set waiting 0
        else if test $ended = 0; and string match -q -- -- $word
            set ended 1
        else if test $ended = 0; and string match -q -r -- '^-.' $word
            contains -- "$inside $word" $valued; and set waiting 1
        else if test "$inside" = osp
            set inside $word
        else if test $place = 0; and contains -- "$inside $word" $nested
            set inside "$inside $word"
        else
            set place (math $place + 1)
        end
    end
    echo $inside
    echo $place
end

function __osp_in
    set -l now (__osp_place)
    test "$now[1]" = "$argv[1]"
end

function __osp_at
    set -l now (__osp_place)
    test "$now[1] $now[2]" = "$argv[1] $argv[2]"
end

# Folders, and the files that fit the pattern.
function __osp_files
    set -l start (commandline -ct | string replace -r -- '^--[^=]*=' '')
    # Asked as for a command without a name, fish completes files and knows all its quotes.
    complete -C "'' $start" | string match -r -i -- "^.*(?:/|$argv[1])(?:\t.*)?\$"
end

@FUNCTIONS@

complete -c osp -f
@LINES@
"""

_POWERSHELL = r"""@HEADER@

Register-ArgumentCompleter -Native -CommandName osp -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    function row($command, $key, $kind, $text) {
        [pscustomobject]@{ Command = $command; Key = $key; Kind = $kind; Text = $text }
    }
    # Command, flag, kind of value and help; a switch has no kind.
    $options = @(
@OPTIONS@
    )
    # Command, number of the argument and its kind.
    $arguments = @(
@ARGUMENTS@
    )
    # Commands inside others, by their full names.
    $nested = @(@INSIDE@)
    # Kind, word and what it means.
    $words = @(
@WORDS@
    )
    # Kind, and the pattern of the files that are offered.
    $files = @(
@FILES@
    )

    $command = ''
    $place = 0
    $waiting = ''
    $ended = $false
    # The words before the one that is being typed; the first is the program.
    $before = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        Select-Object -Skip 1 |
        ForEach-Object { $_.Extent.Text.Trim([char[]]@(34, 39)) })
    foreach ($word in $before) {
        if ($waiting) {
            $waiting = ''
        } elseif (-not $ended -and $word -ceq '--') {
            $ended = $true
        } elseif (-not $ended -and $word.Length -gt 1 -and $word.StartsWith('-')) {
            $option = $options |
                Where-Object { $_.Command -ceq $command -and $_.Key -ceq $word } |
                Select-Object -First 1
            if ($option) { $waiting = $option.Kind }
        } elseif (-not $command) {
            $command = $word
        } elseif (-not $place -and $nested -ccontains "$command $word") {
            $command = "$command $word"
        } else {
            $place++
        }
    }

    $value = "$wordToComplete"
    $prefix = ''
    $kind = $waiting
    if (-not $waiting -and -not $ended -and $value -cmatch '^(--[^=]*)=(.*)$') {
        $flag = $Matches[1]
        $value = $Matches[2]
        $prefix = "$flag="
        $kind = ($options |
            Where-Object { $_.Command -ceq $command -and $_.Key -ceq $flag } |
            Select-Object -First 1).Kind
    } elseif (-not $waiting -and -not $ended -and $value.StartsWith('-')) {
        $options |
            Where-Object { $_.Command -ceq $command -and $_.Key.StartsWith($value) } |
            ForEach-Object {
                [System.Management.Automation.CompletionResult]::new(
                    $_.Key, $_.Key, 'ParameterName', $_.Text)
            }
        return
    } elseif (-not $waiting) {
        $kind = ($arguments |
            Where-Object { $_.Command -ceq $command -and $_.Key -ceq "$place" } |
            Select-Object -First 1).Kind
    }

    $found = @($words |
        Where-Object { $_.Command -ceq $kind -and $_.Key.StartsWith($value) } |
        ForEach-Object {
            [System.Management.Automation.CompletionResult]::new(
                $prefix + $_.Key, $_.Key, 'ParameterValue', $_.Text)
        })
    $pattern = $files | Where-Object { $_.Command -ceq $kind } | Select-Object -First 1
    if ($pattern) {
        $found = @([System.Management.Automation.CompletionCompleters]::CompleteFilename($value) |
            Where-Object { $_.ResultType -eq 'ProviderContainer' -or
                $_.CompletionText -match $pattern.Key } |
            ForEach-Object {
                [System.Management.Automation.CompletionResult]::new(
                    $prefix + $_.CompletionText, $_.ListItemText, $_.ResultType, $_.ToolTip)
            })
    }
    # Where nothing fits, an empty text keeps PowerShell from offering files on its own.
    if ($found) { $found } else { '' }
}
"""


def bash(commands: Sequence[Command], known: Known) -> str:
    """For bash 3.2 and later, with or without bash-completion. It shows no help texts."""
    valued, values, options, arguments = [], [], [], []
    for command in commands:
        flags = [flag for option in command.options for flag in option.flags]
        options.append(f"        {_quoted(command.name)}) {_bash_words('$2', flags)} ;;")
        for option in command.options:
            pattern = " | ".join(_quoted(f"{command.name} {flag}") for flag in option.flags)
            if option.kind:
                valued.append(pattern)
                values += _bash_branch(pattern, known.get(option.kind))
        for place, argument in enumerate(command.arguments):
            pattern = _quoted(f"{command.name} {place}")
            arguments += _bash_branch(pattern, known.get(argument.kind))
    for outer, inner in _inner(commands).items():
        pattern = _quoted(f"{outer} 0")
        names = [_last(command) for command in inner]
        arguments.append(f"        {pattern}) {_bash_words('$3', names)} ;;")
    return _filled(
        _BASH,
        HEADER=_HEADER.format("bash 3.2 and later"),
        VALUED=" | \\\n            ".join(valued),
        # The empty word is never asked for.
        INSIDE=" | ".join(map(_quoted, _nested(commands) or [""])),
        VALUES="\n".join(values),
        OPTIONS="\n".join(options),
        ARGUMENTS="\n".join(arguments),
    )


def _bash_words(start: str, words: Sequence[str]) -> str:
    return " ".join(["_osp_words", f'"{start}"', *map(_quoted, words)])


def _bash_branch(pattern: str, values: Values | None) -> list[str]:
    """The branch of a `case` that completes these values; none where there is nothing to offer."""
    if values is not None and values.files:
        # Upper and lower case, without touching the user's options of matching.
        patterns = [f"*.{_any_case(suffix)}" for suffix in values.suffixes] or ["*"]
        call = " ".join(["_osp_files", '"$3"', *map(_quoted, patterns)])
        return [f"        {pattern}) {call} ;;"]
    if values is not None and values.words:
        return [f"        {pattern}) {_bash_words('$3', [word for word, _ in values.words])} ;;"]
    return []


def _any_case(text: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in text)


def zsh(commands: Sequence[Command], known: Known) -> str:
    """For zsh 5 and later, with all help texts."""
    outer = commands[0]
    inside = _inner(commands)
    functions = [
        _zsh_list(_zsh_commands(name), "command", [(_last(c), c.help) for c in inner])
        for name, inner in inside.items()
    ]
    functions += [
        _zsh_list(_zsh_name(kind), kind, values.words)
        if values.words
        else _zsh_files(_zsh_name(kind), values.suffixes)
        for kind in _kinds(commands)
        if (values := known.get(kind)) is not None and (values.words or values.files)
    ]
    branches = [_zsh_branch(command, inside, known, " " * 12) for command in inside[""]]
    outer_specs = [spec for option in outer.options for spec in _zsh_option(option, known)]
    return _filled(
        _ZSH,
        HEADER=_HEADER.format("zsh 5 and later"),
        FUNCTIONS="\n\n".join(functions),
        OUTER=" \\\n        ".join(map(_quoted, outer_specs)),
        BRANCHES="\n".join(branches),
    )


def _zsh_branch(
    command: Command, inside: Mapping[str, Sequence[Command]], known: Known, indent: str
) -> str:
    """The branch of a `case` that completes a command, and those inside it."""
    specs = [spec for option in command.options for spec in _zsh_option(option, known)]
    specs += [
        f"{place}:{_zsh_part(argument.metavar)}:{_zsh_action(argument.kind, known)}"
        for place, argument in enumerate(command.arguments, 1)
    ]
    inner = inside.get(command.name, ())
    if inner:
        specs += [f"1: :{_zsh_commands(command.name)}", "*:: :->inside"]
    lines = f" \\\n{indent}        ".join(map(_quoted, specs))
    start = f"_arguments {'-C ' if inner else ''}-s -S \\\n{indent}        "
    branch = f"{indent}{_quoted(_last(command))})\n{indent}    {start}{lines} && ret=0\n"
    if inner:
        branches = "\n".join(_zsh_branch(each, inside, known, indent + " " * 12) for each in inner)
        branch += (
            f"{indent}    if [[ $state == inside ]]; then\n{indent}        case $words[1] in\n"
            f"{branches}\n{indent}        esac\n{indent}    fi\n"
        )
    return f"{branch}{indent}    ;;"


def _zsh_commands(outer: str) -> str:
    return "_".join(["_osp_commands", *outer.split()])


def _zsh_option(option: Option, known: Known) -> list[str]:
    """The specifications of one option for `_arguments`, one per spelling."""
    others = "*" if option.repeatable else f"({' '.join(option.flags)})"
    taking = f":{_zsh_part(option.metavar)}:{_zsh_action(option.kind, known)}"
    specs = []
    for flag in option.flags:
        # `=` and `+` allow the value in the same word, too.
        joint = ("=" if flag.startswith("--") else "+") if option.kind else ""
        specs.append(f"{others}{flag}{joint}[{_zsh_part(option.help)}]")
    return [spec + taking if option.kind else spec for spec in specs]


def _zsh_part(text: str) -> str:
    """The text as a part of a specification, in which brackets and colons mean something."""
    return re.sub(r"([\\\[\]:])", r"\\\1", text)


def _zsh_name(kind: str) -> str:
    return "_osp_values_" + re.sub(r"\W", "_", kind)


def _zsh_action(kind: str, known: Known) -> str:
    values = known.get(kind)
    # A space offers nothing, and shows what is asked for.
    return _zsh_name(kind) if values is not None and (values.words or values.files) else " "


def _zsh_list(name: str, what: str, words: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join("        " + _quoted(_zsh_described(*word)) for word in words)
    return (
        f"{name}() {{\n    local -a found\n    found=(\n{rows}\n    )\n"
        f"    _describe -t {what}s {_quoted(what)} found\n}}"
    )


def _zsh_described(word: str, about: str) -> str:
    """`word:about`, as `_describe` reads it."""
    word, about = (text.replace("\\", "\\\\") for text in (word, about))
    word = word.replace(":", "\\:")
    return f"{word}:{about}" if about else word


def _zsh_files(name: str, suffixes: Sequence[str]) -> str:
    # A single one in brackets at the end would be read as qualifiers of the pattern.
    ending = f"({'|'.join(suffixes)})" if len(suffixes) > 1 else "".join(suffixes)
    pattern = _quoted(f"*.(#i){ending}")
    return f"{name}() {{\n    _files{' -g ' + pattern if suffixes else ''}\n}}"


def fish(commands: Sequence[Command], known: Known) -> str:
    """For fish 3 and later, with all help texts."""
    lines: list[str] = []
    valued: list[str] = []
    for command in commands:
        inside = command.name or "osp"
        if command.name:
            outer = command.name.rpartition(" ")[0] or "osp"
            at = _fish(_fish_call("__osp_at", outer, "0"))
            lines.append(
                f"complete -c osp -n {at} -a {_fish(_last(command))} -d {_fish(command.help)}"
            )
        for option in command.options:
            lines += _fish_option(inside, option, known)
            valued += [_fish(f"{inside} {flag}") for flag in option.flags if option.kind]
        for place, argument in enumerate(command.arguments):
            offered = _fish_offer(argument.kind, known)
            if offered != "-f":
                at = _fish(_fish_call("__osp_at", inside, str(place)))
                lines.append(f"complete -c osp -n {at} {offered}")
    functions = [
        _fish_list(kind, known[kind].words)
        for kind in _kinds(commands)
        if kind in known and known[kind].words
    ]
    return _filled(
        _FISH,
        HEADER=_HEADER.format("fish 3 and later"),
        VALUED=" \\\n        ".join(valued),
        INSIDE=" ".join(_fish(name) for name in _nested(commands)),
        FUNCTIONS="\n\n".join(functions),
        LINES="\n".join(lines),
    )


def _fish_option(inside: str, option: Option, known: Known) -> list[str]:
    """One line for the option's first long and short name, further ones for other spellings."""
    start = f"complete -c osp -n {_fish(_fish_call('__osp_in', inside))}"
    end = f"-d {_fish(option.help)}"
    if option.kind:
        end = f"-r {_fish_offer(option.kind, known)} {end}"
    return [
        f"{start} {'-l' if flag.startswith('--') else '-s'} {_fish(flag.lstrip('-'))} {end}"
        for flag in option.flags
    ]


def _fish_call(*words: str) -> str:
    """A call; a word with a space in it stands in quotes."""
    return " ".join(_fish(word) if " " in word else word for word in words)


def _fish_offer(kind: str, known: Known) -> str:
    values = known.get(kind)
    if values is not None and values.words:
        return f"-f -a {_fish(f'({_fish_name(kind)})')}"
    if values is not None and values.files:
        if not values.suffixes:
            return "-F"
        pattern = rf"\.(?:{'|'.join(map(re.escape, values.suffixes))})"
        return f"-f -a {_fish(f'(__osp_files {_fish(pattern)})')}"
    return "-f"


def _fish_name(kind: str) -> str:
    return "__osp_values_" + re.sub(r"\W", "_", kind)


def _fish_list(kind: str, words: Sequence[tuple[str, str]]) -> str:
    rows = " \\\n        ".join(f"{_fish(word)} {_fish(about)}" for word, about in words)
    # A tab parts a word from what it means.
    return f"function {_fish_name(kind)}\n    printf '%s\\t%s\\n' \\\n        {rows}\nend"


def _fish(text: str) -> str:
    """The text as one word of fish, where a backslash means something inside quotes too."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def powershell(commands: Sequence[Command], known: Known) -> str:
    """For PowerShell 5 and later, with the help texts as tool tips."""
    options = [
        _ps_row(command.name, flag, option.kind, option.help or flag)
        for command in commands
        for option in command.options
        for flag in option.flags
    ]
    arguments = [
        _ps_row(command.name, str(place), argument.kind, argument.metavar)
        for command in commands
        for place, argument in enumerate(command.arguments)
    ]
    words = []
    for outer, inner in _inner(commands).items():
        kind = f"command {outer}".strip()
        arguments.append(_ps_row(outer, "0", kind, "COMMAND"))
        words += [_ps_row(kind, _last(c), "", c.help or c.name) for c in inner]
    files = []
    for kind in _kinds(commands):
        values = known.get(kind)
        if values is None:
            continue
        words += [_ps_row(kind, word, "", about or word) for word, about in values.words]
        if values.files:
            # A path with a space in it ends in a quote.
            pattern = rf"\.({'|'.join(map(re.escape, values.suffixes))})['\"]?$"
            files.append(_ps_row(kind, pattern if values.suffixes else "", "", ""))
    return _filled(
        _POWERSHELL,
        HEADER=_HEADER.format("PowerShell 5 and later"),
        OPTIONS="\n".join(options),
        ARGUMENTS="\n".join(arguments),
        INSIDE=", ".join(_ps(name) for name in _nested(commands)),
        WORDS="\n".join(words),
        FILES="\n".join(files),
    )


def _ps_row(*cells: str) -> str:
    return "        row " + " ".join(map(_ps, cells))


def _ps(text: str) -> str:
    """The text as one word of PowerShell, to which curly quotes are quotes too."""
    return "'" + re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", text) + "'"


def _inner(commands: Sequence[Command]) -> dict[str, list[Command]]:
    """The commands directly inside each one that has any, `osp` itself under an empty name."""
    found: dict[str, list[Command]] = {}
    for command in commands:
        if command.name:
            found.setdefault(command.name.rpartition(" ")[0], []).append(command)
    return found


def _nested(commands: Sequence[Command]) -> list[str]:
    """Full names of the commands that are inside others than `osp`."""
    return [command.name for command in commands if " " in command.name]


def _last(command: Command) -> str:
    """The name of a command inside its group."""
    return command.name.rpartition(" ")[2]


def _kinds(commands: Sequence[Command]) -> list[str]:
    """The kinds of values that the commands take, each once, in alphabetical order."""
    taking: list[Option | Argument] = []
    for command in commands:
        taking += [*command.options, *command.arguments]
    return sorted({taker.kind for taker in taking if taker.kind})


def _quoted(text: str) -> str:
    """The text as one word of bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _filled(frame: str, **parts: str) -> str:
    """The frame with each `@NAME@` replaced; a text that looks like one stays as it is."""
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], frame)
