//! A file that only its owner reads, and that gives way to a new one when it is full.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub struct File {
    path: PathBuf,
    open: fs::File,
    size: u64,
    limit: u64,
    backups: usize,
}

impl File {
    /// Goes on with what is there. Full files are renamed; `backups` of them are kept, or all if that is 0.
    pub fn open(path: &Path, limit: u64, backups: usize) -> io::Result<Self> {
        let open = append(path)?;
        Ok(File {
            path: path.to_owned(),
            size: open.metadata()?.len(),
            open,
            limit,
            backups,
        })
    }

    /// Writes a line with its end.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.limit {
            self.rotate()?;
        }
        self.open.write_all(line.as_bytes())?;
        self.size += length;
        Ok(())
    }

    /// As upstream names them: `audit-2026-01-02T03-04-05.678.log`.
    fn rotate(&mut self) -> io::Result<()> {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.6f");
        let (stem, end) = self.names();
        fs::rename(
            &self.path,
            self.path.with_file_name(format!("{stem}-{now}{end}")),
        )?;
        self.open = append(&self.path)?;
        self.size = 0;
        if self.backups == 0 {
            return Ok(());
        }
        let mut full = self.full()?;
        full.sort();
        for old in full.iter().rev().skip(self.backups) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// What the file's name is before and from its last dot.
    fn names(&self) -> (String, String) {
        let part =
            |text: Option<&std::ffi::OsStr>| text.map(|text| text.to_string_lossy().into_owned());
        let end = part(self.path.extension()).map_or_else(String::new, |end| format!(".{end}"));
        (part(self.path.file_stem()).unwrap_or_default(), end)
    }

    fn full(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, end) = self.names();
        let begins = format!("{stem}-2");
        let directory = self.path.parent().filter(|path| *path != Path::new(""));
        let entries = fs::read_dir(directory.unwrap_or(Path::new(".")))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let is_full = |path: &PathBuf| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(&begins) && name.ends_with(&end)
        };
        paths
            .filter(|path| path.as_ref().map_or(true, is_full))
            .collect()
    }
}

fn append(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_gives_way_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let beside = dir.path().join("audit-notes.log");
        fs::write(&beside, "mine").expect("a file");
        let mut file = File::open(&path, 20, 2).expect("a file");
        for n in 0..9 {
            file.write(&format!("line {n:03}\n")).expect("written");
        }
        // After a start the file goes on, and still gives way.
        let mut file = File::open(&path, 20, 2).expect("a file");
        file.write("line 009\n").expect("written");
        let mut full = file.full().expect("files");
        full.sort();
        let mut kept: String = full
            .iter()
            .map(|path| fs::read_to_string(path).expect("text"))
            .collect();
        kept += &fs::read_to_string(&path).expect("text");
        let lines: Vec<String> = (4..10).map(|n| format!("line {n:03}")).collect();
        assert_eq!(
            (full.len(), kept.lines().collect::<Vec<_>>()),
            (2, lines.iter().map(String::as_str).collect())
        );
        assert!(beside.exists());
    }
}
