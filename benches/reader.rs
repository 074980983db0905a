//! The client of the mount benchmarks: the same cheap program for every filesystem, which times itself, so that starting
//! it does not count.
//!
//! ```text
//! reader stat DIR                     readdir and lstat of everything, readlink of symbolic links, as `find -ls` does
//! reader read DIR                     every regular file from begin to end, in the order that readdir gives
//! reader file FILE                    one file from begin to end
//! reader random FILE [COUNT [SECONDS]] 4 KiB preads at distinct places, always the same, until one of the limits
//! reader lookup PATH                  one lstat
//! reader tail FILE                    open, fstat, and 4 KiB at the end
//! reader describe DIR                 what everything looks like: modes, owners, links, sizes, targets, devices, digests of files
//! ```
//!
//! Prints one JSON object: `seconds`, how many entries or reads, how many bytes; `describe` prints `entries`.

use std::{
    error::Error,
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::json;
use sha2::{Digest, Sha256};

type Failure = Box<dyn Error>;

/// What `cat` reads at a time.
const READ_BYTES: usize = 128 << 10;
const PAGE_BYTES: usize = 4096;
const RANDOM_READS_MAX: usize = 16_384;
const RANDOM_SECONDS_MAX: u64 = 5;

/// How much was done.
#[derive(Default)]
struct Done {
    count: u64,
    bytes: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("reader: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<serde_json::Value, Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [act, path, limits @ ..] = &arguments[..] else { return Err("reader ACT PATH; see its source".into()) };
    let path = Path::new(path);
    let limit = |at: usize, default: u64| -> Result<u64, Failure> {
        limits.get(at).map_or(Ok(default), |text| Ok(text.to_string_lossy().parse()?))
    };
    match act.to_string_lossy().as_ref() {
        "stat" => timed(|| stat_all(path)),
        "read" => timed(|| read_all(path)),
        "file" => timed(|| read_file(path, &mut vec![0; READ_BYTES])),
        "random" => read_randomly(
            path,
            usize::try_from(limit(0, RANDOM_READS_MAX as u64)?)?,
            Duration::from_secs(limit(1, RANDOM_SECONDS_MAX)?),
        ),
        "lookup" => timed(|| fs::symlink_metadata(path).map(|_| Done { count: 1, bytes: 0 })),
        "tail" => timed(|| read_tail(path)),
        "describe" => Ok(json!({ "entries": describe_all(path)? })),
        other => Err(format!("there is no {other}").into()),
    }
}

fn timed(work: impl FnOnce() -> io::Result<Done>) -> Result<serde_json::Value, Failure> {
    let start = Instant::now();
    let done = work()?;
    Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "count": done.count, "bytes": done.bytes }))
}

/// Calls `visit` with every entry below `root`, the directories of one level after what is in it.
fn for_each_entry(root: &Path, visit: &mut dyn FnMut(&fs::DirEntry) -> io::Result<()>) -> io::Result<()> {
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            visit(&entry)?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}

fn stat_all(root: &Path) -> io::Result<Done> {
    let mut done = Done::default();
    for_each_entry(root, &mut |entry| {
        let metadata = entry.metadata()?;
        if metadata.is_symlink() {
            fs::read_link(entry.path())?;
        }
        done.count += 1;
        Ok(())
    })?;
    Ok(done)
}

fn read_all(root: &Path) -> io::Result<Done> {
    let mut done = Done::default();
    let mut buffer = vec![0; READ_BYTES];
    for_each_entry(root, &mut |entry| {
        if entry.file_type()?.is_file() {
            done.bytes += read_file(&entry.path(), &mut buffer)?.bytes;
            done.count += 1;
        }
        Ok(())
    })?;
    Ok(done)
}

fn read_file(path: &Path, buffer: &mut [u8]) -> io::Result<Done> {
    let mut file = File::open(path)?;
    let mut done = Done { count: 1, bytes: 0 };
    loop {
        match file.read(buffer)? {
            0 => return Ok(done),
            len => done.bytes += len as u64,
        }
    }
}

fn read_tail(path: &Path) -> io::Result<Done> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut page = [0; PAGE_BYTES];
    let len = file.read_at(&mut page, size.saturating_sub(PAGE_BYTES as u64))?;
    Ok(Done { count: 1, bytes: len as u64 })
}

/// No page is read twice, so nothing but readahead helps.
fn read_randomly(path: &Path, reads_max: usize, time_max: Duration) -> Result<serde_json::Value, Failure> {
    let file = File::open(path)?;
    let pages = shuffled(file.metadata()?.len() / PAGE_BYTES as u64);
    let mut page = [0; PAGE_BYTES];
    let (mut reads, start) = (0_u32, Instant::now());
    for place in pages.iter().take(reads_max) {
        file.read_exact_at(&mut page, place * PAGE_BYTES as u64)?;
        reads += 1;
        if start.elapsed() >= time_max {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let per_second = f64::from(reads) / seconds;
    Ok(json!({ "seconds": seconds, "count": reads, "bytes": u64::from(reads) * PAGE_BYTES as u64, "iops": per_second }))
}

/// The numbers below `count` in an order that looks random and is always the same.
fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for at in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = state % (at as u64 + 1);
        numbers.swap(at, usize::try_from(other).expect("below the length"));
    }
    numbers
}

/// Of each entry below `root`, in the order of paths: its path, and what [`describe`] tells.
fn describe_all(root: &Path) -> io::Result<Vec<serde_json::Value>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for_each_entry(root, &mut |entry| {
        paths.push(entry.path());
        Ok(())
    })?;
    paths.sort_unstable();
    let mut buffer = vec![0; READ_BYTES];
    paths.iter().map(|path| describe(path, path.strip_prefix(root).unwrap_or(path), &mut buffer)).collect()
}

/// Path, type and mode in octal, owner, group, names, bytes, content. Directories have neither names nor bytes here, since
/// each filesystem counts those as it likes.
fn describe(path: &Path, shown: &Path, buffer: &mut [u8]) -> io::Result<serde_json::Value> {
    let metadata = fs::symlink_metadata(path)?;
    let (links, size) = if metadata.is_dir() { (0, 0) } else { (metadata.nlink(), metadata.size()) };
    let mode = format!("{:o}", metadata.mode());
    let content = content(path, &metadata, buffer)?;
    Ok(json!([as_text(shown), mode, metadata.uid(), metadata.gid(), links, size, content]))
}

/// The digest of a file, the target of a symbolic link, the number of a device, and nothing of anything else.
fn content(path: &Path, metadata: &Metadata, buffer: &mut [u8]) -> io::Result<String> {
    let kind = metadata.file_type();
    Ok(if kind.is_symlink() {
        as_text(&fs::read_link(path)?)
    } else if kind.is_file() {
        file_digest(path, buffer)?
    } else if kind.is_block_device() || kind.is_char_device() {
        metadata.rdev().to_string()
    } else {
        String::new()
    })
}

fn as_text(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

fn file_digest(path: &Path, buffer: &mut [u8]) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut contents = Sha256::new();
    loop {
        match file.read(buffer)? {
            0 => return Ok(contents.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            len => contents.update(&buffer[..len]),
        }
    }
}
