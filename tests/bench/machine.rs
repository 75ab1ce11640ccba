//! What the machine says of a process: CPU time, memory; and where it may run.
//!
//! CPU time is what `/proc/<pid>/task/*/schedstat` counts in nanoseconds: it is exact where the kernel's own `tick`
//! accounting would round to 4 ms. Work the kernel does for the network in a process's context is in it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Where client and origin run.
pub const APPLICATIONS: usize = 0;
/// Where both sidecars of a pair run.
pub const PROXIES: usize = 1;

/// Lets the calling thread, and threads it starts, run on one processor only.
pub fn pin_here(cpu: usize) -> anyhow::Result<()> {
    pin(Pid::from_raw(0), cpu)
}

/// Lets all threads a process has by now, and those they start, run on one processor only.
pub fn pin_process(pid: u32, cpu: usize) -> anyhow::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name().to_string_lossy().parse()?;
        pin(Pid::from_raw(task), cpu)?;
    }
    Ok(())
}

fn pin(task: Pid, cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(task, &set).with_context(|| format!("pinning to processor {cpu}; the machine needs two"))
}

/// Lets this process and its children open as many files as they may.
pub fn raise_open_files(least: u64) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= least, "the limit of open files is {hard}, {least} are needed (ulimit -Hn)");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// On-CPU time of all threads a process has, since they began. A thread that ends takes its time with it; the
/// sidecars' threads do not end.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue; // ended since it was listed
        };
        sum += line.split(' ').next().context("empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Watches how much of the machine others take.
pub struct Others {
    began: Instant,
    busy: Duration,
    ours: Duration,
    processes: Vec<u32>,
}

impl Others {
    /// Begins to watch; `processes` are not others, nor is this one.
    pub fn watch(processes: &[u32]) -> anyhow::Result<Self> {
        let processes = [processes, &[std::process::id()]].concat();
        Ok(Self { began: Instant::now(), busy: busy()?, ours: total(&processes)?, processes })
    }

    /// How many processors others kept busy since.
    pub fn cores(&self) -> anyhow::Result<f64> {
        let busy = busy()?.saturating_sub(self.busy);
        let ours = total(&self.processes)?.saturating_sub(self.ours);
        Ok(busy.saturating_sub(ours).as_secs_f64() / self.began.elapsed().as_secs_f64())
    }
}

fn total(processes: &[u32]) -> anyhow::Result<Duration> {
    processes.iter().map(|&pid| cpu_time(pid)).sum()
}

/// Time all processors together were not idle (proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal).
fn busy() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no cpu line")?;
    let ticks: Vec<u64> = fields.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 8, "too few fields in /proc/stat");
    let busy = ticks.iter().sum::<u64>() - ticks[3] - ticks[4];
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(busy as f64 / per_second as f64))
}
