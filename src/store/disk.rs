//! A directory held open, and the few operations that stores need in one.
//!
//! Every operation is relative to a descriptor and follows no symbolic link in its last component, so nobody can move a
//! store's directories about under it. Paths are kept for messages only.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Statx, StatxFlags};

use super::{StoreError, error::At};

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// `O_NONBLOCK` keeps the open of a fifo from waiting for a writer.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

impl Dir {
    /// Opens a directory by path, following links.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty()).at("open", path)?;
        Ok(Self { fd, path: path.into() })
    }

    /// The same, with the path that it really has, read back from the descriptor.
    pub(super) fn open_physical(path: &Path) -> Result<Self, StoreError> {
        Self::open(path)?.with_physical_path()
    }

    fn with_physical_path(self) -> Result<Self, StoreError> {
        let read_back = std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        let path = match read_back {
            Ok(path) if path.is_absolute() => path,
            _ => self.path.canonicalize().at("open", &self.path)?,
        };
        Ok(Self { fd: self.fd, path })
    }

    /// Opens the directory that a symbolic link in this one leads to.
    pub(super) fn sub_through_link(&self, name: &str) -> Result<Self, StoreError> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty()).at("open", &path)?;
        Self { fd, path }.with_physical_path()
    }

    /// The directory that this one lies in, for opening what is in it: it need not be readable.
    pub(super) fn parent(&self) -> Result<Self, StoreError> {
        let path = self.path.parent().unwrap_or(&self.path).to_owned();
        let fd = rustix::fs::openat(&self.fd, "..", DIRECTORY | OFlags::PATH, Mode::empty()).at("open", &path)?;
        Ok(Self { fd, path })
    }

    /// A second handle of this directory.
    pub(super) fn again(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone().at("open", &self.path)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The user that this directory belongs to.
    pub(super) fn owner(&self) -> Result<u32, StoreError> {
        Ok(self.own_stat()?.st_uid)
    }

    /// The facts of this directory itself.
    pub(super) fn own_stat(&self) -> Result<rustix::fs::Stat, StoreError> {
        rustix::fs::fstat(&self.fd).at("read the attributes of", &self.path)
    }

    /// Opens a directory in this one, which must not be a symbolic link.
    pub(super) fn sub(&self, name: &str) -> Result<Self, StoreError> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).at("open", &path)?;
        Ok(Self { fd, path })
    }

    /// The same, or `None` if nothing or something else than a directory has that name.
    pub(super) fn sub_if_any(&self, name: &str) -> Result<Option<Self>, StoreError> {
        match self.sub(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(StoreError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The same, made first if it does not exist.
    pub(super) fn make_sub(&self, name: &str) -> Result<Self, StoreError> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.sub(name),
            Err(cause) => Err(cause).at("make the directory", self.path.join(name)),
        }
    }

    /// Makes a directory in this one; `false` if the name is taken.
    pub(super) fn make_new_sub(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(cause) => Err(cause).at("make the directory", self.path.join(name)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a regular file for reading. Anything else under that name is [`StoreError::NotAFile`].
    pub(super) fn open_file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.join(name);
        // Reading a store is not to write to its disk. Only the owner of a file may ask for that.
        let opened = match rustix::fs::openat(&self.fd, name, READ | OFlags::NOATIME, Mode::empty()) {
            Err(rustix::io::Errno::PERM) => rustix::fs::openat(&self.fd, name, READ, Mode::empty()),
            opened => opened,
        };
        if matches!(opened, Err(rustix::io::Errno::LOOP)) {
            return Err(StoreError::NotAFile { path, what: "a symbolic link" });
        }
        self.regular(File::from(opened.at("open", &path)?), name)
    }

    /// Opens or creates a file of ours for reading and writing; for reading only where writing is not allowed.
    pub(super) fn open_or_create(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600)) {
            Err(cause @ (rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS)) => match self.open_file(name) {
                Err(error) if error.is_not_found() => Err(cause).at("create", self.join(name)),
                opened => opened,
            },
            opened => self.regular(File::from(opened.at("open", self.join(name))?), name),
        }
    }

    /// The same file, if it is a regular one.
    fn regular(&self, file: File, name: &str) -> Result<File, StoreError> {
        let path = self.join(name);
        match FileType::from_raw_mode(rustix::fs::fstat(&file).at("read", &path)?.st_mode) {
            FileType::RegularFile => Ok(file),
            other => Err(StoreError::NotAFile { path, what: describe(other) }),
        }
    }

    /// An unnamed file in this directory, for [`Dir::link`] to give it a name. `None` where the filesystem has none.
    pub(super) fn unnamed_file(&self) -> Result<Option<File>, StoreError> {
        use rustix::io::Errno;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(0o644)) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
            Err(cause) => Err(cause).at("write in", &self.path),
        }
    }

    /// A new file of that name; fails if the name is taken.
    pub(super) fn create_file(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o644));
        Ok(fd.at("create", self.join(name))?.into())
    }

    /// A path of this directory for calls that take no descriptor, whatever has become of its name.
    pub(super) fn proc_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.as_fd().as_raw_fd()).into()
    }

    /// Gives an unnamed file a name here. Fails with `EEXIST` if the name is taken.
    pub(super) fn link_unnamed(&self, file: &File, name: &str) -> io::Result<()> {
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(rustix::fs::CWD, source, &self.fd, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Gives a file in `self` a second name in `to`. Fails with `EEXIST` if that name is taken.
    pub(super) fn link_to(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty())?)
    }

    /// Moves a file, replacing what has the new name.
    pub(super) fn rename_over(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, to_name)?)
    }

    /// Moves a file to a name that is free. Where the filesystem cannot do that in one step, a link and an unlink do it.
    pub(super) fn rename_new(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.link_to(name, to, to_name)?;
                self.unlink(name)
            }
            moved => Ok(moved?),
        }
    }

    /// Swaps two names. `Ok(false)` where the filesystem cannot.
    pub(super) fn exchange(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<bool> {
        use rustix::io::Errno;
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(cause) => Err(cause.into()),
        }
    }

    pub(super) fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    pub(super) fn remove_dir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// The facts of a name, without following a link. `None` if there is no such name.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Statx>, StoreError> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        match rustix::fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(cause) => Err(cause).at("read the attributes of", self.join(name)),
        }
    }

    /// Which mount this directory was reached through; `None` where the kernel does not tell.
    pub(super) fn mount_id(&self) -> Option<u64> {
        let stat = rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
    }

    /// The device of the filesystem that it lies on.
    pub(super) fn device(&self) -> Result<u64, StoreError> {
        Ok(rustix::fs::fstat(&self.fd).at("read the attributes of", &self.path)?.st_dev)
    }

    /// Whether these are the facts of this very directory.
    pub(super) fn is_directory_of(&self, meta: &std::fs::Metadata) -> Result<bool, StoreError> {
        use std::os::unix::fs::MetadataExt;
        let own = self.own_stat()?;
        Ok((own.st_dev, own.st_ino) == (meta.dev(), meta.ino()))
    }

    /// The names in this directory, sorted, all of them or an error.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut names = self.some_names(usize::MAX)?;
        names.sort_unstable();
        Ok(names)
    }

    /// At most `max` of the names in this directory, whichever come first, in no order.
    pub(super) fn some_names(&self, max: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let entries = rustix::fs::Dir::read_from(&self.fd).at("list", &self.path)?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.at("list", &self.path)?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                names.push(name);
            }
            if names.len() == max {
                break;
            }
        }
        Ok(names)
    }

    /// The names in this directory with the numbers of their inodes, in no order, all of them or an error. `keep` makes of
    /// each name what the caller wants to have of it.
    pub(super) fn names_with_inodes<T>(&self, keep: impl Fn(&[u8]) -> T) -> Result<Vec<(u64, T)>, StoreError> {
        let entries = rustix::fs::Dir::read_from(&self.fd).at("list", &self.path)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.at("list", &self.path)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push((entry.ino(), keep(name)));
            }
        }
        Ok(names)
    }

    /// Writes a file of ours and makes it durable under its name: never half-written there, replacing what it replaces.
    /// What a crash leaves of it lies in `temp`, on the same filesystem.
    pub(super) fn write_durably(&self, temp: &Dir, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let partial = temp.write_partial(name, bytes)?;
        if let Err(source) = temp.rename_over(&partial, self, name) {
            let _ = temp.unlink(&partial);
            return Err(StoreError::Io { action: "write", path: self.join(name), source });
        }
        self.sync()
    }

    /// Writes a file and makes it durable, but not yet its name, unless there is a file of that name: that one stays.
    /// Where the filesystem has unnamed files, a crash leaves all of it or nothing.
    pub(super) fn write_unless_there(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let written = match self.unnamed_file()? {
            Some(mut file) => {
                io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all()).at("write", self.join(name))?;
                self.link_unnamed(&file, name)
            }
            None => {
                let partial = self.write_partial(name, bytes)?;
                self.rename_new(&partial, self, name).inspect_err(|_| drop(self.unlink(&partial)))
            }
        };
        match written {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            written => written.at("write", self.join(name)),
        }
    }

    /// Writes a new file under a name that no other process uses, and makes its bytes durable. Pids are no such names:
    /// processes in different containers have the same ones.
    pub(super) fn write_partial(&self, name: &str, bytes: &[u8]) -> Result<String, StoreError> {
        let (partial, mut file) = self.create_partial(name)?;
        let written = io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all());
        if let Err(source) = written {
            let _ = self.unlink(&partial);
            return Err(StoreError::Io { action: "write", path: self.join(&partial), source });
        }
        Ok(partial)
    }

    /// A new file under a name that no other process uses.
    pub(super) fn create_partial(&self, name: &str) -> Result<(String, File), StoreError> {
        for number in 0_u32.. {
            let partial = format!(".{name}.{}.{number}{PARTIAL}", std::process::id());
            match self.create_file(&partial) {
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created.map(|file| (partial, file)),
            }
        }
        unreachable!("a directory does not hold that many files")
    }

    /// Reads a file of ours, at most a few megabytes.
    pub(super) fn read_small(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let file = self.open_file(name)?;
        io::Read::read_to_end(&mut io::Read::take(file, SMALL_BYTES_MAX), &mut bytes).at("read", self.join(name))?;
        Ok(bytes)
    }

    /// Reads a small file, all of it or an error.
    pub(super) fn read_at_most(&self, name: &str, max: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let file = self.open_file(name)?;
        io::Read::read_to_end(&mut io::Read::take(file, max + 1), &mut bytes).at("read", self.join(name))?;
        match bytes.len() as u64 > max {
            true => Err(io::Error::from(io::ErrorKind::FileTooLarge)).at("read", self.join(name)),
            false => Ok(bytes),
        }
    }

    /// Makes the names in this directory durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.fd).at("make durable", &self.path)
    }

    /// Makes everything on this directory's filesystem durable.
    pub(super) fn sync_filesystem(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.fd).at("make durable", &self.path)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How the names of files end that are being written.
pub(super) const PARTIAL: &str = ".partial";
const SMALL_BYTES_MAX: u64 = 256 << 20;

/// What a file type is called in a sentence.
pub(super) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::RegularFile => "a file",
        _ => "of an unknown kind",
    }
}
