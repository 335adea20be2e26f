//! The standard metrics of a process (`process_*`), as Prometheus's client libraries name them, read from `/proc` at each
//! scrape. Where there is no `/proc`, there are none.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use std::fs;

/// The families, with their types and their help.
const FAMILIES: [(&str, MetricType, &str); 7] = [
    ("process_cpu_seconds_total", MetricType::COUNTER, "CPU time of the process, of user and system, in seconds."),
    ("process_open_fds", MetricType::GAUGE, "Open file descriptors."),
    ("process_max_fds", MetricType::GAUGE, "The most file descriptors that the process may open."),
    ("process_virtual_memory_bytes", MetricType::GAUGE, "Virtual memory, in bytes."),
    ("process_resident_memory_bytes", MetricType::GAUGE, "Resident memory, in bytes."),
    ("process_start_time_seconds", MetricType::GAUGE, "The start of the process, in seconds since the Unix epoch."),
    ("process_threads", MetricType::GAUGE, "Threads of the process."),
];

/// The collector of the process's own metrics.
pub(super) struct ProcessMetrics {
    descriptions: Vec<Desc>,
    /// The start of the system, in seconds since the Unix epoch.
    boot: Option<f64>,
}

impl ProcessMetrics {
    pub(super) fn new() -> ProcessMetrics {
        let describe = |(name, _, help): &(&str, MetricType, &str)| {
            Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), Default::default())
                .expect("metric names are valid")
        };
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|seconds| seconds.trim().parse().ok())
        });
        ProcessMetrics { descriptions: FAMILIES.iter().map(describe).collect(), boot }
    }

    /// Returns the values in the order of the families; `None` where one cannot be read.
    fn read(&self) -> [Option<f64>; FAMILIES.len()] {
        let status = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Status::of(&text));
        let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64);
        let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
        let ticks = clock_ticks_per_second() as f64;
        let of = |value: fn(&Status) -> u64| status.as_ref().map(|status| value(status) as f64);
        [
            of(|status| status.cpu_ticks).map(|cpu| cpu / ticks),
            open,
            most,
            of(|status| status.virtual_bytes),
            of(|status| status.resident_pages).map(|pages| pages * page_size() as f64),
            of(|status| status.start_ticks).zip(self.boot).map(|(start, boot)| boot + start / ticks),
            of(|status| status.threads),
        ]
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let values = FAMILIES.iter().zip(self.read());
        values.filter_map(|((name, kind, help), value)| value.map(|value| family(name, *kind, help, value))).collect()
    }
}

fn family(name: &str, kind: MetricType, help: &str, value: f64) -> MetricFamily {
    let mut metric = Metric::from_label(Vec::new());
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

/// The fields of `/proc/self/stat` (proc(5)) that the metrics are made of.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Status {
    fn of(text: &str) -> Option<Status> {
        // The command's name stands in parentheses and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first field of the rest is the third one of the file.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Status {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_proc_5() {
        let text = "4242 (a ) b) S 1 4242 4242 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 7 0 123456 104857600 2560 18446744073709551615";
        let expected = Status {
            cpu_ticks: 300,
            threads: 7,
            start_ticks: 123_456,
            virtual_bytes: 104_857_600,
            resident_pages: 2560,
        };
        assert_eq!(Status::of(text), Some(expected));
        assert_eq!(Status::of("1 (x) S 1"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_has_all_of_them() {
        let families = ProcessMetrics::new().collect();
        let names: Vec<&str> = families.iter().map(MetricFamily::name).collect();
        assert_eq!(names, FAMILIES.map(|(name, _, _)| name));
        let value = |number: usize| families[number].get_metric()[0].get_gauge().get_value();
        assert!(value(1) >= 3.0 && value(2) >= value(1), "descriptors: {} of {}", value(1), value(2));
        assert!(value(4) > 1e6 && value(3) >= value(4), "memory: {} of {}", value(4), value(3));
        let now = crate::clock::unix_seconds() as f64;
        assert!((now - 86_400.0..=now + 2.0).contains(&value(5)), "started at {}", value(5));
        assert!(value(6) >= 1.0);
    }
}
