# shellcheck shell=bash disable=SC2154
# Sourced by the launchers: background processes that are stopped by process id. A pid file holds
# the pid and when the process started, for pids are used again. Who sources this sets `dir`, an
# absolute path.

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

started() { # PID -> clock ticks after boot; fails when there is no such process
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }" # the name before it may hold blanks
  [[ "${fields[0]}" != Z ]] || return 1
  printf '%s\n' "${fields[19]}"
}

alive() { # NAME -> the pid, if the process of this pid file is still that process
  local pid ticks
  { read -r pid ticks <"$dir/pids/$1"; } 2>/dev/null || return 1
  [[ "$(started "$pid")" == "$ticks" ]] || return 1
  printf '%s\n' "$pid"
}

start() { # NAME COMMAND... -> runs it in a session of its own: Ctrl-C in this shell is not for it
  local name="$1" pid
  shift
  setsid "$@" </dev/null >>"$dir/log/$name.out" 2>&1 &
  pid=$!
  printf '%s %s\n' "$pid" "$(started "$pid")" >"$dir/pids/$name"
}

stop() { # NAME [SIGNAL] [SECONDS] -> sends the signal (TERM), then KILL after so many seconds (10)
  local pid
  if pid=$(alive "$1"); then
    kill -"${2:-TERM}" "$pid" 2>/dev/null || true
    if ! wait_for "${3:-10}" gone "$1"; then
      say "$1 (process $pid) does not end by itself: killed"
      kill -KILL "$pid" 2>/dev/null || true
      wait_for 5 gone "$1" || true
    fi
  fi
  rm -f "$dir/pids/$1"
}

gone() { ! alive "$1" >/dev/null; }

processes_with() { # NAME=VALUE -> pids of processes with this in their environment; not this shell
  local process pid
  for process in /proc/[0-9]*; do
    pid="${process##*/}"
    [[ "$pid" != "$$" && "$pid" != "$BASHPID" ]] || continue
    { tr '\0' '\n' <"$process/environ"; } 2>/dev/null | grep -qxF -- "$1" && printf '%s\n' "$pid"
  done
  return 0
}

wait_for() { # SECONDS COMMAND... -> until the command succeeds; fails when it does not in time
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

make_folders() { # NAME... -> below `dir`, which must be ours: its name can be guessed by others
  umask 022 # other users submit jobs, and the database is another user
  mkdir -p "$dir"
  if [[ ! -O "$dir" ]]; then
    say "$dir belongs to another user: choose another --dir"
    exit 2
  fi
  local name
  for name in pids log "$@"; do mkdir -p "$dir/$name"; done
}

install_packages() { # PACKAGE... -> with apt, or exit code 3
  (($#)) || return 0
  local log="$dir/log/apt.out" reason=""
  (($(id -u) == 0)) || reason="not root"
  command -v apt-get >/dev/null || reason="no apt-get here"
  if [[ -n "$reason" ]]; then
    say "missing packages: $*; cannot install them: $reason"
    exit 3
  fi
  say "installing $*"
  # A fresh container has no package lists, and old ones name what is gone: then get them first.
  if ! apt_install "$@" >"$log" 2>&1 &&
    ! { apt-get -q update && apt_install "$@"; } >>"$log" 2>&1; then
    tail -n 5 "$log" >&2
    say "could not install $* (no network, or packages of another name here?); see $log"
    exit 3
  fi
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "$@"; }

show_logs() { # FILE... -> the last lines of each that has any
  local log
  for log in "$@"; do
    [[ -s "$dir/log/$log" ]] || continue
    printf -- '--- %s\n' "$dir/log/$log" >&2
    tail -n 15 "$dir/log/$log" >&2
  done
}
