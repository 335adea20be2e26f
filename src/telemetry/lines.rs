//! A thread that writes lines, so that other threads never wait for their destination. Lines that it cannot write are
//! dropped and counted; a line is written completely or not at all.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The most bytes that a pipe writes atomically (pipe(7)).
const ATOMIC: usize = 4096;
/// The interval at which a thread that waits for its destination checks whether to give up.
const LOOK: Duration = Duration::from_millis(100);
/// The longest wait for the destination once all writers are gone.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The destination of lines.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Stdout,
    Stderr,
    /// A file to append to.
    File(PathBuf),
}

/// The handle by which other threads write; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lines {
    queue: SyncSender<Message>,
    /// Set to reopen the destination. The thread sees by its weak reference whether any writer is left.
    reopen: Arc<AtomicBool>,
    /// Called with the number of lost lines.
    lost: Lost,
}

type Lost = Arc<dyn Fn(u64) + Send + Sync>;

enum Message {
    Lines(Vec<u8>),
    /// Answered once all lines before it are written or lost.
    Flush(SyncSender<()>),
}

impl Lines {
    /// Opens the destination and starts the thread, with a queue of a given length. `lost` gets the number of lost
    /// lines, `failing` the error of the destination whenever it changes.
    pub(crate) fn open(
        name: &str,
        destination: Destination,
        waiting: usize,
        lost: impl Fn(u64) + Send + Sync + 'static,
        failing: impl Fn(&io::Error) + Send + 'static,
    ) -> io::Result<Lines> {
        let out = Out::open(&destination)?;
        let (queue, messages) = sync_channel(waiting);
        let (reopen, lost): (Arc<AtomicBool>, Lost) = (Arc::default(), Arc::new(lost));
        let (asked, told) = (Arc::downgrade(&reopen), Arc::clone(&lost));
        let writer = Writer { destination, out, reopen: asked, lost: told, is_failing: false, failing };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || writer.run(&messages))?;
        Ok(Lines { queue, reopen, lost })
    }

    /// Queues complete lines. Never waits.
    pub(crate) fn write(&self, lines: Vec<u8>) {
        let refused = match self.queue.try_send(Message::Lines(lines)) {
            Ok(()) => return,
            Err(TrySendError::Full(refused) | TrySendError::Disconnected(refused)) => refused,
        };
        if let Message::Lines(lines) = refused {
            (self.lost)(count(&lines));
        }
    }

    /// Reopens the destination: the file that has its name now.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // Wakes a thread that has nothing to write.
        let _ = self.queue.try_send(Message::Lines(Vec::new()));
    }

    /// Waits until all lines are written or lost, or until the timeout. Returns whether it was reached in time.
    pub(crate) fn flush(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let (done, told) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(refused)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return false;
            }
            message = refused;
            std::thread::sleep(Duration::from_millis(2));
        }
        told.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// Returns the number of lines in a text.
fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

/// The state of the thread.
struct Writer<F> {
    destination: Destination,
    out: Out,
    /// Upgradable while there is a writer.
    reopen: Weak<AtomicBool>,
    lost: Lost,
    is_failing: bool,
    failing: F,
}

impl<F: Fn(&io::Error)> Writer<F> {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut has_given_up = false;
        // Once all writers are gone, the queued lines are still written.
        for message in messages {
            match message {
                Message::Lines(lines) if has_given_up => (self.lost)(count(&lines)),
                Message::Lines(lines) => has_given_up = !self.write(&lines),
                // The caller may have given up.
                Message::Flush(done) => drop(done.try_send(())),
            }
        }
    }

    /// Writes lines. Returns whether the thread should go on.
    fn write(&mut self, lines: &[u8]) -> bool {
        self.reopen_if_requested();
        let mut rest = lines;
        while !rest.is_empty() {
            let piece = self.out.next_piece(rest);
            rest = &rest[piece.len()..];
            match self.write_piece(piece) {
                Ok(()) => self.is_failing = false,
                Err(WriteError::GivenUp(lost)) => {
                    (self.lost)(lost + count(rest));
                    return self.reopen_if_requested();
                }
                Err(WriteError::Broken(error, lost)) => {
                    (self.lost)(lost);
                    if !std::mem::replace(&mut self.is_failing, true) {
                        (self.failing)(&error);
                    }
                }
            }
        }
        true
    }

    /// Reopens the destination if that was requested. Returns whether it was.
    fn reopen_if_requested(&mut self) -> bool {
        let is_asked = self.reopen.upgrade().is_some_and(|reopen| reopen.swap(false, Ordering::AcqRel));
        if is_asked {
            match Out::open(&self.destination) {
                Ok(out) => self.out = out,
                Err(error) => (self.failing)(&error),
            }
        }
        is_asked
    }

    /// Returns whether the thread should stop waiting for its destination.
    fn gives_up(&self, since: Instant) -> bool {
        match self.reopen.upgrade() {
            Some(reopen) => reopen.load(Ordering::Acquire),
            None => since.elapsed() >= LAST_MOMENT,
        }
    }

    /// Writes lines completely; a last line that does not fit is not begun.
    fn write_piece(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        let begun = self.out.length();
        let mut written = 0;
        let failure = loop {
            if written == piece.len() {
                return Ok(());
            }
            match self.write_some(&piece[written..]) {
                Ok(0) => break WriteError::Broken(ErrorKind::WriteZero.into(), 0),
                Ok(length) => written += length,
                Err(failure) => break failure,
            }
        };
        let whole = piece[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.out.take_back(begun, written, written - whole);
        let lost = count(&piece[whole..]);
        Err(match failure {
            WriteError::GivenUp(_) => WriteError::GivenUp(lost),
            WriteError::Broken(error, _) => WriteError::Broken(error, lost),
        })
    }

    fn write_some(&mut self, piece: &[u8]) -> Result<usize, WriteError> {
        let since = Instant::now();
        loop {
            if !self.out.is_regular {
                while !is_writable(self.out.file.as_fd(), LOOK) {
                    if self.gives_up(since) {
                        return Err(WriteError::GivenUp(0));
                    }
                }
            }
            match self.out.write(piece) {
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    if self.gives_up(since) {
                        return Err(WriteError::GivenUp(0));
                    }
                }
                written => return written.map_err(|error| WriteError::Broken(error, 0)),
            }
        }
    }
}

/// The reason for which a piece was not written, and the number of its lost lines.
enum WriteError {
    /// The destination accepts nothing, and the wait is given up.
    GivenUp(u64),
    Broken(io::Error, u64),
}

/// An open destination.
struct Out {
    file: File,
    is_regular: bool,
    /// It was opened here, to append.
    is_ours: bool,
    /// The last line is incomplete.
    is_torn: bool,
}

impl Out {
    fn open(destination: &Destination) -> io::Result<Out> {
        let file = match destination {
            Destination::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Destination::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            // Opening a FIFO without a reader would block, so it is an error.
            Destination::File(path) => {
                let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
                OpenOptions::new().create(true).append(true).custom_flags(flags).open(path).map_err(|error| {
                    let is_fifo = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
                    let is_unread = is_fifo && error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error());
                    if is_unread { io::Error::new(error.kind(), "it is a FIFO that nobody reads") } else { error }
                })?
            }
        };
        let is_regular = file.metadata()?.is_file();
        let is_ours = matches!(destination, Destination::File(_));
        Ok(Out { file, is_regular, is_ours, is_torn: false })
    }

    /// Returns the bytes of one write: complete lines. A line longer than an atomic write goes alone.
    fn next_piece<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        if self.is_regular || lines.len() <= ATOMIC {
            return lines;
        }
        let end = memchr::memrchr(b'\n', &lines[..ATOMIC]).or_else(|| memchr::memchr(b'\n', lines));
        &lines[..end.map_or(lines.len(), |end| end + 1)]
    }

    fn length(&self) -> Option<u64> {
        if self.is_regular { self.file.metadata().ok().map(|found| found.len()) } else { None }
    }

    /// Writes a part of a piece, at most as much as a pipe accepts without blocking.
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.is_torn = false;
        }
        let most = if self.is_regular { piece.len() } else { piece.len().min(ATOMIC) };
        self.file.write(&piece[..most])
    }

    /// Removes the beginning of a line whose end could not be written. Where that is not possible, the next line begins
    /// on a new line.
    fn take_back(&mut self, begun: Option<u64>, written: usize, torn: usize) {
        if torn == 0 {
            return;
        }
        let whole = begun.map(|begun| begun + (written - torn) as u64);
        let is_last = begun.is_some_and(|begun| self.length() == Some(begun + written as u64));
        let is_taken_back = self.is_ours && is_last && whole.is_some_and(|whole| self.file.set_len(whole).is_ok());
        self.is_torn = !is_taken_back;
    }
}

fn is_writable(file: BorrowedFd<'_>, within: Duration) -> bool {
    let mut wanted = [PollFd::new(&file, PollFlags::OUT)];
    let within = Timespec { tv_sec: 0, tv_nsec: within.subsec_nanos().into() };
    // An error of the destination is returned by the next write.
    poll(&mut wanted, Some(&within)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Command;
    use std::sync::atomic::AtomicU64;

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        (folder, path)
    }

    fn lines_to(path: &std::path::Path, waiting: usize) -> (Lines, Arc<AtomicU64>) {
        let lost: Arc<AtomicU64> = Arc::default();
        let counted = Arc::clone(&lost);
        let lines = Lines::open(
            "log",
            Destination::File(path.to_owned()),
            waiting,
            move |lines| {
                counted.fetch_add(lines, Ordering::SeqCst);
            },
            |_| (),
        );
        (lines.unwrap(), lost)
    }

    #[test]
    fn a_reader_that_stalls_holds_nobody_up_and_gets_whole_lines() {
        let (_folder, path) = fifo();
        assert!(Lines::open("log", Destination::File(path.clone()), 1, |_| (), |_| ()).is_err(), "nobody reads");
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (lines, lost) = lines_to(&path, 4);
        let mut sent = 0u64;
        let write =
            |number: u64| lines.write(format!("{number} {}\n", "x".repeat(number as usize % 6000)).into_bytes());
        // Until the pipe is full and the thread waits.
        loop {
            (sent..sent + 100).for_each(write);
            sent += 100;
            if !lines.flush(Duration::from_millis(100)) {
                break;
            }
        }
        // From then on no caller waits, and lines may be lost.
        let begun = Instant::now();
        (sent..sent + 5_000).for_each(write);
        sent += 5_000;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(lost.load(Ordering::SeqCst) > 0);
        // With a reader again, complete lines arrive and the lost ones are counted.
        let reading = std::thread::spawn(move || {
            let (mut text, mut piece) = (Vec::new(), [0; 65536]);
            while !text.ends_with(b"end\n") {
                let length = reader.read(&mut piece).unwrap();
                text.extend_from_slice(&piece[..length]);
            }
            String::from_utf8(text).unwrap()
        });
        while !lines.flush(Duration::from_millis(50)) {}
        lines.write(b"end\n".to_vec());
        let text = reading.join().unwrap();
        let mut arrived = 0;
        for line in text.lines().filter(|line| *line != "end") {
            let (number, rest) = line.split_once(' ').unwrap();
            assert_eq!(rest.len(), number.parse::<usize>().unwrap() % 6000, "{number} is whole");
            arrived += 1;
        }
        assert_eq!(arrived + lost.load(Ordering::SeqCst), sent);
    }

    #[test]
    fn a_destination_is_opened_anew_while_its_reader_stalls() {
        let (folder, path) = fifo();
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (lines, lost) = lines_to(&path, 64);
        for _ in 0..40 {
            lines.write([b"x".repeat(8000), b"\n".to_vec()].concat());
        }
        assert!(!lines.flush(Duration::from_millis(50)));
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        lines.reopen();
        assert!(lines.flush(Duration::from_secs(10)));
        lines.write(b"after\n".to_vec());
        assert!(lines.flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("after\n") && lost.load(Ordering::SeqCst) > 0);
        assert!(text.lines().all(|line| line == "after" || line.len() == 8000), "every line is whole");
    }

    #[test]
    fn a_thread_that_nobody_writes_to_does_not_wait_for_ever() {
        let (_folder, path) = fifo();
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let lines = Lines::open("stalled-log", Destination::File(path), 64, |_| (), |_| ()).unwrap();
        for _ in 0..40 {
            lines.write([b"x".repeat(8000), b"\n".to_vec()].concat());
        }
        drop(lines);
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_there = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            names.filter(|name| name.trim() == "stalled-log").count() > 0
        };
        while !is_there() {
            assert!(Instant::now() < deadline, "the thread does not start");
        }
        while is_there() {
            assert!(Instant::now() < deadline, "the thread is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_a_full_disk_tears_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut out = Out::open(&Destination::File(path.clone())).unwrap();
        out.write(b"one\ntwo\nthr").unwrap();
        out.take_back(Some(0), 11, 3);
        out.write(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nfour\n");
        // Where another process has appended since, the incomplete line stays, on a line of its own.
        let begun = out.length();
        out.write(b"fi").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"theirs\n").unwrap();
        out.take_back(begun, 2, 2);
        out.write(b"six\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nfour\nfitheirs\n\nsix\n");
    }
}
