# The first process of a node's namespaces. $1 is the node's directory, $2 its name, $3 that of its cgroups. Makes the node look like a machine of
# its own and lives until its standard input ends; the kernel then ends everything in the process namespace.
set -eu
directory=$1

# What kubelet sets for the whole machine. It finds it set already and leaves the real ones alone.
mkdir "$directory/sys"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  key=${setting%=*}
  mkdir -p "$directory/sys/${key%/*}"
  echo "${setting#*=}" >"$directory/sys/$key"
  [ ! -e "/proc/sys/$key" ] || mount --bind "$directory/sys/$key" "/proc/sys/$key"
done
# Of this namespace alone. Forwarding is for host ports.
echo "$2" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward

# The root of the node's cgroups, in each hierarchy. In the second version children have the controllers that their parent
# hands on; a root that refuses one has it in use otherwise.
while read -r _ path type _; do
  case $type in
  cgroup) mkdir "$path/$3" ;;
  cgroup2)
    for controller in $(cat "$path/cgroup.controllers"); do
      echo "+$controller" >"$path/cgroup.subtree_control" || :
    done
    mkdir "$path/$3"
    ;;
  esac
done </proc/mounts

# Layers of images as an overlay, where the file system of the directory allows it.
mkdir "$directory/probe" && cd "$directory/probe" && mkdir lower upper work merged
if mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged; then
  umount merged
  echo overlayfs >"$directory/snapshotter"
else
  echo native >"$directory/snapshotter"
fi
cd /

for folder in lib log; do mount --bind "$directory/$folder" "/var/$folder"; done
mount --bind "$directory/run" /run
# As on a real machine, for volumes with mount propagation. The namespace began private: nothing gets out.
mount --make-rshared /
: >"$directory/up"

# Collects orphans, too: a shell waits for any child.
cat >/dev/null || :
