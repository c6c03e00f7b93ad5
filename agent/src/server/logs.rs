//! Reading containers' logs: which lines are wanted is decided purely, the files are read a piece at a time.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

use crate::runtime::log_pipe;

/// Between two looks at whether a log that is followed has grown.
const LOOK: Duration = Duration::from_millis(100);

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) follow: bool,
    /// Only the last so many lines.
    pub(super) tail: Option<usize>,
    /// Only lines from this time on.
    pub(super) since: Option<Timestamp>,
    /// Put its time before each line.
    pub(super) timestamps: bool,
    /// No more than so many bytes.
    pub(super) limit: Option<usize>,
}

/// One entry of a log in the format of the Container Runtime Interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    /// Whether the line ends with it.
    whole: bool,
    text: &'a [u8],
}

/// Reads `TIME STREAM F|P TEXT`.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let (_stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Entry {
        time,
        whole: tag.starts_with(b"F"),
        text,
    })
}

/// What is sent for one line of the file; nothing for one that is not wanted.
fn render(line: &[u8], options: &Options) -> Option<Vec<u8>> {
    let entry = parse(line)?;
    if let Some(since) = options.since
        && entry.time.parse::<Timestamp>().ok()? < since
    {
        return None;
    }
    let mut out = Vec::with_capacity(entry.text.len() + 40);
    if options.timestamps {
        out.extend_from_slice(entry.time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(entry.text);
    if entry.whole {
        out.push(b'\n');
    }
    Some(out)
}

/// Sends a log piece by piece. `alive` says whether more may still come; without it, following ends.
pub(super) async fn send(
    path: PathBuf,
    options: Options,
    alive: impl Fn() -> bool + Send,
    sender: mpsc::Sender<Vec<u8>>,
) -> std::io::Result<()> {
    let mut budget = options.limit.unwrap_or(usize::MAX);
    let mut held: VecDeque<Vec<u8>> = VecDeque::new();
    let mut reader = None;
    for file in open_all(&path).await? {
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        while next_line(&mut lines, &mut line).await? {
            if let Some(out) = render(&line, &options) {
                if let Some(tail) = options.tail {
                    held.push_back(out);
                    if held.len() > tail {
                        held.pop_front();
                    }
                } else if !pass(&sender, out, &mut budget).await {
                    return Ok(());
                }
            }
            line.clear();
        }
        // Rest of a line that is being written.
        reader = Some((lines, line));
    }
    for out in held {
        if !pass(&sender, out, &mut budget).await {
            return Ok(());
        }
    }
    if !options.follow {
        return Ok(());
    }
    let (mut lines, mut line) = match reader {
        Some(reader) => reader,
        None => (BufReader::new(wait_for(&path, &alive).await?), Vec::new()),
    };
    loop {
        // Asked before the reading: what came before the end is then read for sure.
        let last_round = !alive();
        while next_line(&mut lines, &mut line).await? {
            if let Some(out) = render(&line, &options)
                && !pass(&sender, out, &mut budget).await
            {
                return Ok(());
            }
            line.clear();
        }
        if rotated(&path, &mut lines).await {
            let inode = lines.get_ref().metadata().await?.ino();
            if let Some(next) = following(&path, inode).await? {
                lines = BufReader::new(next);
                continue;
            }
        }
        if last_round {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Appends to `line` up to a line's end, which is dropped. False when the file ends first.
async fn next_line(lines: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    lines.read_until(b'\n', line).await?;
    if line.last() != Some(&b'\n') {
        return Ok(false);
    }
    line.pop();
    Ok(true)
}

async fn pass(sender: &mpsc::Sender<Vec<u8>>, mut out: Vec<u8>, budget: &mut usize) -> bool {
    out.truncate(*budget);
    *budget -= out.len();
    sender.send(out).await.is_ok() && *budget > 0
}

/// Opens a log whose container has only just begun.
async fn wait_for(path: &Path, alive: impl Fn() -> bool) -> std::io::Result<File> {
    loop {
        match File::open(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && alive() => {
                tokio::time::sleep(LOOK).await;
            }
            result => return result,
        }
    }
}

/// Opens the files of a log, and gives them the oldest first.
///
/// A rotation meanwhile gives each the name of an older one. Opened from the newest on, one may be met again, which is
/// noticed; the other way round one would be missed.
async fn open_all(path: &Path) -> std::io::Result<Vec<File>> {
    let (mut files, mut inodes) = (Vec::new(), Vec::new());
    for name in log_pipe::files(path).iter().rev() {
        let file = match File::open(name).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let inode = file.metadata().await?.ino();
        if !inodes.contains(&inode) {
            inodes.push(inode);
            files.push(file);
        }
    }
    files.reverse();
    Ok(files)
}

/// The file after the one with this inode; the oldest where that one is gone. `None` where there is no newer one.
async fn following(path: &Path, inode: u64) -> std::io::Result<Option<File>> {
    let mut files = open_all(path).await?;
    let mut at = 0;
    for (position, file) in files.iter().enumerate() {
        if file.metadata().await?.ino() == inode {
            at = position + 1;
        }
    }
    Ok((at < files.len()).then(|| files.swap_remove(at)))
}

/// Whether another file has taken the place of the one that was read to its end.
async fn rotated(path: &Path, lines: &mut BufReader<File>) -> bool {
    let (Ok(now), Ok(open)) = (
        tokio::fs::metadata(path).await,
        lines.get_ref().metadata().await,
    ) else {
        return false;
    };
    let at_end = lines
        .stream_position()
        .await
        .is_ok_and(|at| at >= open.len());
    now.ino() != open.ino() && at_end
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:03.000000000Z stderr F o\n\
        2026-01-01T00:00:04.000000000Z stdout F three\n";

    async fn read(options: Options) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        let (sender, mut receiver) = mpsc::channel(4);
        let path = file.path().to_owned();
        let task = tokio::spawn(async move { send(path, options, || false, sender).await });
        let mut all = Vec::new();
        while let Some(part) = receiver.recv().await {
            all.extend(part);
        }
        task.await.unwrap().unwrap();
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn each_option_selects_what_it_says() {
        assert_eq!(read(Options::default()).await, "one\ntwo\nthree\n");
        let follow = true;
        assert_eq!(
            read(Options {
                follow,
                ..Options::default()
            })
            .await,
            "one\ntwo\nthree\n"
        );
        let tail = Some(1);
        assert_eq!(
            read(Options {
                tail,
                ..Options::default()
            })
            .await,
            "three\n"
        );
        let tail = Some(0);
        assert_eq!(
            read(Options {
                tail,
                ..Options::default()
            })
            .await,
            ""
        );
        let since = "2026-01-01T00:00:04Z".parse().ok();
        assert_eq!(
            read(Options {
                since,
                ..Options::default()
            })
            .await,
            "three\n"
        );
        let limit = Some(5);
        assert_eq!(
            read(Options {
                limit,
                ..Options::default()
            })
            .await,
            "one\nt"
        );
        let timestamps = true;
        let tail = Some(1);
        assert_eq!(
            read(Options {
                timestamps,
                tail,
                ..Options::default()
            })
            .await,
            "2026-01-01T00:00:04.000000000Z three\n"
        );
    }

    #[test]
    fn a_line_in_another_format_is_passed_over() {
        assert_eq!(parse(b"nonsense"), None);
        assert_eq!(parse(b""), None);
        assert!(parse(b"t stdout F ").is_some_and(|entry| entry.text.is_empty()));
    }

    #[tokio::test]
    async fn a_follower_that_fell_behind_misses_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:01.000000000Z stdout F {text}\n");
        std::fs::write(&path, line("a")).unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        let (alive, end) = (std::sync::Arc::new(()), path.clone());
        let held = alive.clone();
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let running = move || std::sync::Arc::strong_count(&held) > 1;
        let task = tokio::spawn(async move { send(end, options, running, sender).await });
        assert_eq!(receiver.recv().await.unwrap(), b"a\n");
        // Two rotations at once, before the follower looks again.
        std::fs::rename(&path, log_pipe::rotated(&path, 2)).unwrap();
        std::fs::write(log_pipe::rotated(&path, 1), line("b")).unwrap();
        std::fs::write(&path, line("c")).unwrap();
        assert_eq!(receiver.recv().await.unwrap(), b"b\n");
        assert_eq!(receiver.recv().await.unwrap(), b"c\n");
        drop(alive);
        assert!(receiver.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
