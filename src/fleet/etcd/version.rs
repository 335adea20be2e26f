//! Versions of etcd with known faults.

/// Returns a warning of versions with known faults.
pub(super) fn of_version(version: &str) -> Option<String> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or_default());
    let found = (parts.next()?, parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match found {
        (3, 5, 0..=5) => Some(format!(
            "etcd {version} may lose or contradict what it has acknowledged (3.5.0 to 3.5.5); use a newer one"
        )),
        found if found < (3, 4, 22) => Some(format!("etcd {version} is older than 3.4.22, the oldest that is tested")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_faults_are_warned_of() {
        for (version, is_warned) in [
            ("3.4.22", false),
            ("3.4.23", false),
            ("3.4.21", true),
            ("3.3.27", true),
            ("3.5.0", true),
            ("3.5.5", true),
            ("3.5.6", false),
            ("3.5.17", false),
            ("3.6.0-rc.1", false),
            ("4.0.0", false),
        ] {
            assert_eq!(of_version(version).is_some(), is_warned, "{version}");
        }
    }
}
