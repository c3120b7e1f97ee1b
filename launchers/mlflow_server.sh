#!/usr/bin/env bash
# An MLflow server on PostgreSQL: many runs at once write to it, from many machines if need be.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: mlflow_server.sh up|down|status [--dir DIR] [--host HOST] [--port PORT] [--workers N]
                        [--artifacts FOLDER|s3://BUCKET/PREFIX] [--postgres URI]

  up       start PostgreSQL and the MLflow server; stdout is the server's address:
             sseg-nase tracking=server tracking.uri="$(launchers/mlflow_server.sh up)"
  down     stop both, by process id; the data stay for the next `up`
  status   say what runs; exit 0 when the server answers, 1 when it does not

  --dir DIR        database, artifacts, logs and pid files (default: mlflow-server in this folder);
                   what `down` and `status` look at, too
  --host HOST      address to listen on (default: 127.0.0.1; 0.0.0.0 for other machines: name this
                   one as they do in MLFLOW_SERVER_ALLOWED_HOSTS, e.g. box:5000. There is no
                   log-in: whoever reaches the server may read, write and delete)
  --port PORT      port to listen on (default: 5000)
  --workers N      processes of the server, about 200 MB each (default: 1)
  --artifacts X    a folder (default: DIR/artifacts) or a bucket of an S3-compatible store, with
                   MLFLOW_S3_ENDPOINT_URL and AWS_* of the environment; clients reach it through
                   the server and need neither
  --postgres URI   an existing database, postgresql://USER:PASSWORD@HOST/NAME, instead of our own

The Python is $PYTHON, else .venv/bin/python of this repository, else python3.

exit codes: 0 done, 1 did not come up (or does not run, for `status`), 2 wrong usage,
            3 something is missing that cannot be installed here
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=processes.sh
source "$here/processes.sh"

wrong() {
  say "$1"
  usage >&2
  exit 2
}

# --- the command line ---------------------------------------------------------------------------
dir="mlflow-server"
host=127.0.0.1
port=5000
workers=1
artifacts=""
postgres=""
command="${1:-}"
case "$command" in
  up | down | status) shift ;;
  -h | --help | help)
    usage
    exit 0
    ;;
  '') wrong "say what to do: up, down or status" ;;
  *) wrong "unknown command: $command" ;;
esac
while (($#)); do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --dir | --host | --port | --workers | --artifacts | --postgres)
      [[ -n "${2:-}" ]] || wrong "$1 needs a value"
      ;;
    *) wrong "unknown option: $1" ;;
  esac
  case "$1" in
    --dir) dir="$2" ;;
    --host) host="$2" ;;
    --port) port="$2" ;;
    --workers) workers="$2" ;;
    --artifacts) artifacts="$2" ;;
    --postgres) postgres="$2" ;;
  esac
  shift 2
done
if ! [[ "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
  wrong "--port must be 1 to 65535, not '$port'"
fi
[[ "$workers" =~ ^[1-9][0-9]?$ ]] || wrong "--workers must be a whole number from 1, not '$workers'"
[[ -z "$postgres" || "$postgres" =~ ^postgres(ql)?(\+psycopg2)?:// ]] ||
  wrong "--postgres must begin with postgresql://, not '${postgres%%:*}'"
dir=$(realpath -m "$dir")
[[ "$artifacts" != *://* || "$artifacts" =~ ^s3://[^/]+ ]] ||
  wrong "--artifacts must be a folder or s3://BUCKET/PREFIX, not '$artifacts'"

# --- what must be there -------------------------------------------------------------------------
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" "$here/../.venv/bin/python" python3; do
    if [[ -n "$candidate" ]] && command -v "$candidate"; then return; fi
  done
  say "no Python found: set PYTHON"
  exit 3
}

needs_module() { # MODULE WHAT_INSTALLS_IT
  "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" && return
  say "$python has no module $1: $python -m pip install $2"
  exit 3
}

postgres_programs() { # -> the folder of the newest initdb and postgres; fails without any
  local program
  if program=$(command -v initdb); then
    dirname "$(realpath "$program")" # the others stand beside it, not beside a link to it
    return
  fi
  # Debian keeps them off the PATH, one folder a version.
  program=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  [[ -n "$program" ]] && dirname "$program"
}

install_postgres() {
  postgres_programs >/dev/null && return
  # Debian's package would make a database of its own, and start it where it can.
  local no_cluster=/etc/postgresql-common/createcluster.d/sseg-nase.conf
  if (($(id -u) == 0)) && mkdir -p "${no_cluster%/*}"; then
    echo "create_main_cluster = false" >"$no_cluster"
  fi
  install_packages postgresql
  rm -f "$no_cluster"
  postgres_programs >/dev/null && return
  say "no initdb found, though the package postgresql is there"
  exit 3
}

# --- PostgreSQL: a socket in DIR and a password, no port ----------------------------------------
sql() { # PROGRAM ARGUMENTS... -> a client program of PostgreSQL, logged in
  PGPASSWORD=$(<"$dir/password") "$programs/$1" -h "$dir/socket" -U mlflow "${@:2}" </dev/null
}

database_answers() { sql psql -qc '' postgres >"$dir/log/psql.out" 2>&1; }

no_backends() { # -> whether no process works in the data folder any more
  local process
  for process in /proc/[0-9]*; do
    [[ "$(readlink "$process/cwd" 2>/dev/null)" != "$dir/postgres" ]] || return 1
  done
}

# A killed PostgreSQL stays a zombie where PID 1 waits for no one, as in many containers: to a new
# one it looks alive.
forget_killed() {
  local pid
  { read -r pid <"$dir/postgres/postmaster.pid"; } 2>/dev/null || return 0
  if [[ -d "/proc/$pid" ]] && ! started "$pid" >/dev/null; then
    wait_for 10 no_backends || give_up "processes of a killed PostgreSQL do not end"
    rm -f "$dir/postgres/postmaster.pid" "$dir"/socket/.s.PGSQL.*.lock
  fi
}

start_postgres() {
  if alive postgres >/dev/null && database_answers; then return; fi
  stop postgres INT 30
  if ((${#dir} > 80)); then
    say "the path of --dir is too long for a socket: $dir"
    exit 2
  fi
  local owner as_owner=()
  owner=$(id -un)
  if (($(id -u) == 0)); then
    owner=postgres # of Debian's package
    id "$owner" >/dev/null 2>&1 || owner=nobody
    # setpriv becomes the command and is not its parent: the process id stays.
    as_owner=(setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups)
    if ! "${as_owner[@]}" test -x "$dir"; then
      say "PostgreSQL does not run as root, and user $owner cannot enter $dir: choose another --dir"
      exit 2
    fi
  fi
  mkdir -p "$dir/socket"
  chown "$owner" "$dir/socket"
  if [[ ! -d "$dir/postgres" ]]; then
    # Whole or not at all: made under another name, then renamed.
    rm -rf "$dir/postgres.new"
    mkdir -m 700 "$dir/postgres.new"
    (umask 077 && od -An -tx1 -N16 /dev/urandom | tr -d ' \n' >"$dir/password")
    install -m 600 -o "$owner" "$dir/password" "$dir/password.initdb"
    chown "$owner" "$dir/postgres.new"
    "${as_owner[@]}" "$programs/initdb" -D "$dir/postgres.new" -U mlflow -E UTF8 --locale=C.UTF-8 \
      --auth=scram-sha-256 --pwfile="$dir/password.initdb" >"$dir/log/initdb.out" 2>&1 ||
      give_up "initdb failed"
    rm -f "$dir/password.initdb"
    mv "$dir/postgres.new" "$dir/postgres"
  fi
  # Some 16 writers of small rows, not a warehouse. Commits stay synchronous: a row that the server
  # has confirmed survives whatever is killed.
  local settings=(
    listen_addresses= unix_socket_directories="$dir/socket" max_connections=60
    shared_buffers=32MB work_mem=2MB maintenance_work_mem=16MB max_wal_size=128MB
    wal_level=minimal max_wal_senders=0 autovacuum_max_workers=1 max_worker_processes=2
    max_logical_replication_workers=0 max_parallel_workers=0 max_parallel_workers_per_gather=0
    jit=off
  ) options=() setting
  for setting in "${settings[@]}"; do options+=(-c "$setting"); done
  forget_killed
  ( # PostgreSQL's user may not enter the folder where we are
    cd "$dir"
    start postgres "${as_owner[@]}" "$programs/postgres" -D "$dir/postgres" "${options[@]}"
  )
  wait_for 60 database_answers || give_up "PostgreSQL does not answer"
  sql psql -qc '' mlflow >/dev/null 2>&1 || sql createdb mlflow
}

# --- the MLflow server --------------------------------------------------------------------------
reachable() { # -> the host under which the server is reached from here
  if [[ "$host" == 0.0.0.0 ]]; then echo 127.0.0.1; else printf '%s\n' "$host"; fi
}

healthy() { # -> whether the server answers GET /health with 200
  (
    exec 3<>"/dev/tcp/$(reachable)/$port"
    printf 'GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
    read -r -t 5 line <&3
    [[ "$line" == HTTP/*" 200 "* ]]
  ) 2>/dev/null
}

healthy_or_gone() { gone server || healthy; }

read_address() { # -> sets host and port to those of the last `up`
  { read -r host port <"$dir/address"; } 2>/dev/null
}

print_address() { printf 'http://%s:%s\n' "$(reachable)" "$port"; }

kill_the_rest() { # -> whether there is no process of the server left
  local pids pid
  pids=$(processes_with "SSEG_NASE_MLFLOW_SERVER=$dir")
  for pid in $pids; do kill -KILL "$pid" 2>/dev/null || true; done
  [[ -z "$pids" ]]
}

stop_server() {
  stop server
  # `mlflow server` starts the one that answers; when the first was killed, that one goes on.
  wait_for 10 kill_the_rest || say "processes of the server that do not end"
}

start_server() { # DATABASE_URI
  # The driver by name: which one `postgresql:` alone means changed with SQLAlchemy 2.1.
  local destination="${artifacts:-$dir/artifacts}" uri="postgresql+psycopg2://${1#*://}"
  if [[ "$destination" != *://* ]]; then
    mkdir -p "$destination"
    destination=$(realpath "$destination")
  fi
  # The address with its password goes by the environment: others can read a command line.
  (
    cd "$dir"
    export MLFLOW_BACKEND_STORE_URI="$uri" MLFLOW_DISABLE_TELEMETRY=true \
      MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false SSEG_NASE_MLFLOW_SERVER="$dir"
    unset MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI
    start server "$python" -m mlflow server --serve-artifacts \
      --artifacts-destination "$destination" --host "$host" --port "$port" --workers "$workers"
  )
  wait_for 120 healthy_or_gone || true
  healthy || give_up "the MLflow server does not answer"
}

give_up() {
  say "$1"
  show_logs initdb.out postgres.out psql.out server.out
  down
  exit 1
}

# --- the three commands -------------------------------------------------------------------------
up() {
  make_folders artifacts
  if alive server >/dev/null && (read_address && healthy); then
    say "is up already, in $dir"
    read_address
    print_address
    return
  fi
  echo '*' >"$dir/.gitignore" # the default folder may lie in a repository
  python=$(find_python)
  needs_module mlflow mlflow
  needs_module psycopg2 psycopg2-binary # our extra `postgres`
  [[ "$artifacts" != s3://* ]] || needs_module boto3 boto3
  stop_server # the rest of one that broke down
  if ! port_is_free "$port"; then
    say "port $port is taken by another program: choose another --port"
    exit 1
  fi
  rm -f "$dir"/log/*.out
  local uri="$postgres"
  if [[ -z "$uri" ]]; then
    install_postgres
    programs=$(postgres_programs)
    start_postgres
    uri="postgresql://mlflow:$(<"$dir/password")@/mlflow?host=$dir/socket"
  fi
  start_server "$uri"
  printf '%s %s\n' "$host" "$port" >"$dir/address"
  say "is up, in $dir"
  print_address
}

down() {
  if [[ ! -d "$dir/pids" ]]; then
    say "nothing runs in $dir"
    return
  fi
  stop_server
  stop postgres INT 30 # INT: end sessions, write everything, stop
  say "is down; data and logs stay in $dir"
}

status() {
  local name pid
  for name in postgres server; do
    if pid=$(alive "$name"); then
      say "$name runs (process $pid)"
    else
      say "$name does not run from here"
    fi
  done
  if ! { alive server >/dev/null && read_address && healthy; }; then return 1; fi
  say "answers at $(print_address)"
}

"$command"
