# Takes real nodes and their network off the machine, whatever of them is there. Each argument is the name of a link, of
# cgroups, or of both. Their processes are gone or going: a cgroup that still holds a dying one is tried again.
PATH="$PATH:/usr/sbin:/sbin"
for name in "$@"; do
  ip link delete "$name" 2>/dev/null
  for cgroup in "/sys/fs/cgroup/$name" /sys/fs/cgroup/*/"$name"; do
    tries=0
    while [ -d "$cgroup" ] && [ "$tries" -lt 200 ]; do
      find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
      tries=$((tries + 1))
      sleep 0.05
    done
  done
done
