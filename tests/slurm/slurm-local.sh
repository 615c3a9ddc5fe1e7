#!/usr/bin/env bash
# A real Slurm cluster (munged + slurmctld + N slurmd) on one machine, loopback only.
# Debian 12: apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge
#   ./slurm-local.sh start|stop|status|env|restart
# Settings (environment):
#   SLURM_LOCAL_DIR   state, keys, logs            (default /tmp/slurm-local)
#   SLURM_LOCAL_NODES number of slurmd 'nodes'     (default 2)
#   SLURM_LOCAL_CPUS  CPUs declared per node       (default 4; may exceed the real ones)
#   SLURM_LOCAL_GPUS  pretend GPUs per node        (default 0; lets --gres=gpu:N scripts run)
#   SLURM_LOCAL_AUTH  munge | none                 (default munge)
# Clients need:  export SLURM_CONF=$SLURM_LOCAL_DIR/slurm.conf      (eval "$(./slurm-local.sh env)")
set -euo pipefail
D=${SLURM_LOCAL_DIR:-/tmp/slurm-local}
N=${SLURM_LOCAL_NODES:-2}
C=${SLURM_LOCAL_CPUS:-4}
G=${SLURM_LOCAL_GPUS:-0}
AUTH=${SLURM_LOCAL_AUTH:-munge}
BASEPORT=${SLURM_LOCAL_PORT:-16817}          # slurmctld; node i listens on BASEPORT+i
HOST=$(hostname -s)
ME=$(id -un)
export SLURM_CONF=$D/slurm.conf

write_conf() {
  local mem last
  mem=$(awk '/MemTotal/{print int($2/1024*0.8)}' /proc/meminfo)
  last=$((BASEPORT + N))
  {
    cat <<CONF
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$BASEPORT
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/$AUTH
CredType=cred/$AUTH
# loopback only: bind to the declared addresses, not to INADDR_ANY
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
# no cgroups, no affinity, no systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
# more CPUs than the machine has is fine
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
KillWait=120
MinJobAge=3600
InactiveLimit=0
WaitTime=0
SlurmctldTimeout=300
SlurmdTimeout=300
UnkillableStepTimeout=60
# accounting without a database: one text line per finished job
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
SlurmctldDebug=info
SlurmdDebug=info
CONF
    [ "$AUTH" = munge ] && echo "AuthInfo=socket=$D/munge/munge.socket"
    [ "$G" -gt 0 ] && echo "GresTypes=gpu"
    echo "NodeName=node[1-$N] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((BASEPORT+1))-$last] CPUs=$C Boards=1 SocketsPerBoard=1 CoresPerSocket=$C ThreadsPerCore=1 RealMemory=$mem$([ "$G" -gt 0 ] && echo " Gres=gpu:$G") State=UNKNOWN"
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
  } > "$D/slurm.conf"
  # links to /dev/null stand in for GPUs (a plain file is refused: "not a valid character or block device");
  if [ "$G" -gt 0 ]; then
    # Slurm then sets CUDA_VISIBLE_DEVICES to 0..G-1
    for ((i=0;i<G;i++)); do ln -sf /dev/null "$D/run/gpu$i"; done
    echo "NodeName=node[1-$N] Name=gpu File=$D/run/gpu[0-$((G-1))]" > "$D/gres.conf"
  else rm -f "$D/gres.conf"; fi
  echo "CgroupAutomount=no" > "$D/cgroup.conf"    # 22.05; from 23.11 on: CgroupPlugin=disabled
}

alive() { [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

start() {
  umask 022
  mkdir -p "$D"/{state,spool,run,log,munge}
  chmod 755 "$D" "$D"/{run,log,munge}
  for ((i=1;i<=N;i++)); do mkdir -p "$D/spool/node$i"; done
  write_conf
  if [ "$AUTH" = munge ]; then
    if [ ! -s "$D/munge/munge.key" ]; then
      ( umask 077; head -c 1024 /dev/urandom > "$D/munge/munge.key" )
    fi
    alive "$D/munge/munged.pid" || munged --force \
      --key-file="$D/munge/munge.key" --socket="$D/munge/munge.socket" \
      --pid-file="$D/munge/munged.pid" --seed-file="$D/munge/munge.seed" \
      --log-file="$D/munge/munged.log"
  fi
  alive "$D/run/slurmctld.pid" || slurmctld -i -f "$SLURM_CONF"
  for ((i=1;i<=N;i++)); do
    alive "$D/run/slurmd.node$i.pid" || slurmd -N "node$i" -f "$SLURM_CONF"
  done
  for ((k=0;k<1500;k++)); do                      # wait until every node is IDLE
    [ "$(sinfo -h -N -t idle,mix,alloc -o %N 2>/dev/null | sort -u | wc -l)" -ge "$N" ] && { sinfo -N -l; return 0; }
    sleep 0.2
  done
  echo "nodes did not come up; see $D/log" >&2; sinfo -N -l || true; return 1
}

stop() {
  if alive "$D/run/slurmctld.pid"; then scancel --full -u "$ME" 2>/dev/null || true; sleep 1; fi
  for f in "$D"/run/slurmd.*.pid "$D/run/slurmctld.pid" "$D/munge/munged.pid"; do
    [ -f "$f" ] || continue
    p=$(cat "$f"); kill "$p" 2>/dev/null || true
    for ((k=0;k<500;k++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.2; done
    kill -0 "$p" 2>/dev/null && kill -9 "$p" || true
    rm -f "$f"
  done
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  restart) stop; start ;;
  status) sinfo -N -l; squeue ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) sed -n '2,13p' "$0"; exit 2 ;;
esac
