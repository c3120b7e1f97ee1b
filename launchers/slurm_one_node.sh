#!/usr/bin/env bash
# A real Slurm of one node, for trying and testing: no systemd, no cgroups, no database.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: slurm_one_node.sh up|down|status [--dir DIR] [--cpus N] [--partition NAME[:TIER]]...
                         [--grace SECONDS]

  up       bring up munge, slurmctld and slurmd; stdout is one line to eval:
             eval "$(launchers/slurm_one_node.sh up)"
  down     cancel every job and stop what `up` started, by process id
  status   say what runs; exit 0 when the node takes jobs, 1 when it does not

  --dir DIR            slurm.conf, state, logs and pid files (default: sseg-nase-slurm-UID in the
                       temporary folder); what `down` and `status` look at, too
  --cpus N             CPUs that the node offers, whatever the machine has (default: 2)
  --partition NAME[:TIER]
                       repeatable; the first is the default one. A job of a higher tier preempts
                       one of a lower tier, which is requeued (default: main:1 urgent:10)
  --grace SECONDS      from the signal of a preemption to its end (default: 30)

exit codes: 0 done, 1 did not come up (or does not run, for `status`), 2 wrong usage,
            3 cannot be installed here (not root, no apt, no network)
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
dir="${TMPDIR:-/tmp}/sseg-nase-slurm-$(id -u)"
cpus=2
grace=30
partitions=()
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
    --dir | --cpus | --partition | --grace) (($# > 1)) || wrong "$1 needs a value" ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) wrong "unknown option: $1" ;;
  esac
  case "$1" in
    --dir) dir="$2" ;;
    --cpus) cpus="$2" ;;
    --partition) partitions+=("$2") ;;
    --grace) grace="$2" ;;
  esac
  shift 2
done
[[ -n "$dir" ]] || wrong "--dir must not be empty"
dir=$(realpath -m "$dir")
[[ "$cpus" =~ ^[1-9][0-9]{0,3}$ ]] || wrong "--cpus must be a whole number from 1, not '$cpus'"
[[ "$grace" =~ ^[0-9]{1,5}$ ]] || wrong "--grace must be whole seconds, not '$grace'"
((${#partitions[@]})) || partitions=(main:1 urgent:10)
for partition in "${partitions[@]}"; do
  [[ "$partition" =~ ^[A-Za-z][A-Za-z0-9_-]*(:[0-9]{1,4})?$ ]] ||
    wrong "--partition must be NAME or NAME:TIER, not '$partition'"
done
PATH="$PATH:/usr/sbin:/sbin" # where Debian puts the daemons; not on every user's PATH

free_port() { # FROM -> the first port from there on which nothing listens
  local port="$1"
  until port_is_free "$port"; do port=$((port + 1)); done
  printf '%s\n' "$port"
}

install_slurm() {
  local missing=() pair
  for pair in slurmctld:slurmctld slurmd:slurmd sinfo:slurm-client munged:munge; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  install_packages "${missing[@]}"
}

# --- what Slurm reads ---------------------------------------------------------------------------
write_config() { # MUNGE_SOCKET ('' for the system's)
  local host memory control_port node_port auth name tier default=YES
  host=$(hostname -s 2>/dev/null || hostname)
  # All the memory of the machine, shared out by CPUs to jobs that do not ask for any.
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
  control_port=$(free_port 6817)
  node_port=$(free_port $((control_port + 1)))
  # A requeued job waits until its old credential has expired: 120 s by default, and a test's time.
  auth="cred_expire=5"
  [[ -z "$1" ]] || auth="$auth,socket=$1"
  {
    cat <<CONF
# Written by slurm_one_node.sh up; written again each time.
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=$auth
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldDebug=info
SlurmdDebug=info
# No cgroups and no binding: a container has neither.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# No database: scontrol knows a job for MinJobAge seconds, jobs.txt for ever; sacct knows none.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobs.txt
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=$((memory / cpus))
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=0
# A preempted job gets the signal it asked for (sbatch --signal), SIGTERM if it asked for none, and
# is requeued when it ends or GraceTime has passed.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=30
OverTimeLimit=0
InactiveLimit=0
MinJobAge=600
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
CONF
    for partition in "${partitions[@]}"; do
      name="${partition%%:*}"
      tier=1
      [[ "$partition" == "$name" ]] || tier="${partition##*:}"
      printf 'PartitionName=%s Nodes=%s Default=%s MaxTime=INFINITE State=UP PriorityTier=%s' \
        "$name" "$host" "$default" "$tier"
      printf ' PreemptMode=REQUEUE GraceTime=%s\n' "$grace"
      default=NO
    done
  } >"$dir/slurm.conf.new"
  mv "$dir/slurm.conf.new" "$dir/slurm.conf"
}

node_state() { SLURM_CONF="$dir/slurm.conf" timeout 5 sinfo -h -N -o %T 2>/dev/null | sort -u; }

print_environment() { printf 'export SLURM_CONF=%q\n' "$dir/slurm.conf"; }

munge_answers() { munge -n ${1:+--socket="$1"} >/dev/null 2>&1; }

takes_jobs() { [[ "$(node_state)" =~ ^(idle|mixed|allocated)$ ]]; }

give_up() {
  say "$1"
  show_logs munged.out munged.log slurmctld.out slurmd.out
  down
  exit 1
}

# --- the three commands -------------------------------------------------------------------------
up() {
  if alive slurmctld >/dev/null && alive slurmd >/dev/null && takes_jobs; then
    say "is up already, in $dir"
    print_environment
    return
  fi
  if (($(id -u) != 0)); then
    say "must be run as root: slurmd starts jobs in the name of whoever submits them"
    exit 3
  fi
  make_folders state spool
  install_slurm
  stop slurmd # the rest of one that broke down
  stop slurmctld
  local socket=""
  if ! munge_answers; then
    socket="$dir/munge/socket"
    if ((${#socket} > 100)); then
      say "the path of --dir is too long for a socket: $dir"
      exit 2
    fi
    if ! munge_answers "$socket"; then
      stop munged
      mkdir -p "$dir/munge"
      (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
      # --force: the folder for temporary files above DIR is writable by all.
      start munged munged --foreground --force --key-file "$dir/munge/key" --socket "$socket" \
        --pid-file "$dir/munge/pid" --seed-file "$dir/munge/seed" --log-file "$dir/log/munged.log"
      wait_for 10 munge_answers "$socket" || give_up "munge does not answer"
    fi
  fi
  rm -f "$dir"/log/slurm*.out
  write_config "$socket"
  # State is kept, so that job ids go on: output folders of earlier jobs are not written to again.
  export SLURM_CONF="$dir/slurm.conf"
  start slurmctld slurmctld -D -f "$dir/slurm.conf"
  start slurmd slurmd -D -f "$dir/slurm.conf"
  wait_for 30 takes_jobs || give_up "the node is not idle after 30 s but '$(node_state)'"
  say "is up, in $dir: $cpus CPUs, partitions ${partitions[*]}"
  print_environment
}

kill_processes() { # tasks|all -> of THIS Slurm's jobs; they outlive slurmd. `all`: slurmstepd, too
  local pid
  for pid in $(processes_with "SLURM_CONF=$dir/slurm.conf"); do
    if { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -q '^SLURM_JOB_ID=' ||
      [[ "$1" == all && "$(cat "/proc/$pid/comm" 2>/dev/null)" == slurmstepd* ]]; then
      say "process $pid of a job does not end by itself: killed"
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done
}

queue_is_empty() { [[ -z "$(timeout 5 squeue -h -o %A 2>/dev/null)" ]]; }

down() {
  if [[ ! -d "$dir/pids" ]]; then
    say "nothing runs in $dir"
    return
  fi
  export SLURM_CONF="$dir/slurm.conf"
  if alive slurmctld >/dev/null && ! queue_is_empty; then
    # Pending ones first, or they start on what the others leave.
    squeue -h -t PD -o %A | xargs -r scancel --quiet || true
    squeue -h -o %A | xargs -r scancel --quiet || true
    # Time for a job to write how it ended, but not KillWait.
    if ! wait_for 5 queue_is_empty; then
      kill_processes tasks
      wait_for 10 queue_is_empty || say "jobs that do not end: $(squeue -h -o %A | xargs)"
    fi
  fi
  stop slurmd
  stop slurmctld
  stop munged
  kill_processes all
  say "is down; logs stay in $dir/log"
}

status() {
  local name pid
  for name in munged slurmctld slurmd; do
    if pid=$(alive "$name"); then
      say "$name runs (process $pid)"
    else
      say "$name does not run from here"
    fi
  done
  alive slurmctld >/dev/null || return 1
  SLURM_CONF="$dir/slurm.conf" timeout 5 sinfo >&2 || return 1
  SLURM_CONF="$dir/slurm.conf" timeout 5 squeue >&2 || return 1
  takes_jobs
}

"$command"
