//! A folder whose content is this user's alone, and the files in it. What is loaded from there runs on the GPU.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

pub(super) use system::Folder;

impl Folder {
    /// Opens the folder, made first if it is not there, unless others could have written what is in it or could put another in
    /// its place; then a reason.
    pub(super) fn trusted(path: &Path) -> Result<Self, String> {
        let path = &std::path::absolute(path).map_err(text)?;
        if let Some(there) = path.ancestors().skip(1).find(|folder| folder.exists()) {
            system::demand_fixed(&fs::canonicalize(there).map_err(text)?)?;
        }
        system::builder().recursive(true).create(path).map_err(text)?;
        let path = fs::canonicalize(path).map_err(text)?;
        path.parent().map_or(Ok(()), system::demand_fixed)?;
        let folder = Folder::open(&path).map_err(text)?;
        folder.demand_own()?;
        Ok(folder)
    }

    /// The content of a file. None if there is none of this user's that nobody else can write to; a link is none.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open_own(name)? else { return Ok(None) };
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Some(content))
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Everything by a handle of the folder, so that its path, once it was followed, no longer matters.
#[cfg(unix)]
mod system {
    use std::fs::DirBuilder;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    use rustix::fd::OwnedFd;
    use rustix::fs::{AtFlags, Dir, Mode, OFlags, open, openat, renameat, unlinkat};
    use rustix::io::Errno;
    use rustix::process::geteuid;

    use super::*;

    pub(crate) struct Folder(OwnedFd);

    impl Folder {
        /// Whoever's it is.
        pub(crate) fn open(path: &Path) -> io::Result<Self> {
            Ok(Folder(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
        }

        pub(super) fn demand_own(&self) -> Result<(), String> {
            let (folder, user) = (File::from(self.0.try_clone().map_err(text)?).metadata().map_err(text)?, geteuid());
            if folder.uid() != user.as_raw() {
                return Err(format!("it belongs to user {}, and this is user {user}", folder.uid()));
            }
            if folder.mode() & WRITABLE != 0 {
                return Err(format!(
                    "others can write to it (mode {:o}), so what is in it may be theirs; delete it with all that it contains",
                    folder.mode() & 0o7777
                ));
            }
            Ok(())
        }

        pub(super) fn open_own(&self, name: &str) -> io::Result<Option<File>> {
            // A pipe must not make this wait for a writer.
            let file = match self.open_at(name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let of = file.metadata()?;
            let own = of.is_file() && of.uid() == geteuid().as_raw() && of.mode() & WRITABLE == 0;
            Ok(own.then_some(file))
        }

        /// A new file, only for this user; an error if the name is taken.
        pub(crate) fn create(&self, name: &str) -> io::Result<File> {
            Ok(self.open_at(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?)
        }

        /// A file to lock.
        pub(crate) fn open_or_create(&self, name: &str) -> io::Result<File> {
            Ok(self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR)?)
        }

        pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
            Ok(unlinkat(&self.0, name, AtFlags::empty())?)
        }

        pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
            let entries = Dir::read_from(&self.0)?;
            entries.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec()))).collect()
        }

        fn open_at(&self, name: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<File> {
            openat(&self.0, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode).map(File::from)
        }
    }

    pub(super) fn builder() -> DirBuilder {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    }

    /// Sees, from the root down, whether anybody but this user and the superuser could put something else in the place of what
    /// lies in `parent`, whose path is canonical.
    pub(super) fn demand_fixed(parent: &Path) -> Result<(), String> {
        let user = geteuid().as_raw();
        let mut folders: Vec<&Path> = parent.ancestors().collect();
        folders.reverse();
        for folder in folders {
            let of = fs::symlink_metadata(folder).map_err(text)?;
            let (owner, mode) = (of.uid(), of.mode());
            if owner != user && owner != 0 {
                return Err(format!(
                    "another can be put in its place: {} belongs to user {owner}, and this is user {user}",
                    folder.display()
                ));
            }
            // Nobody else gets beyond a folder that is closed to them, whatever is open below.
            if owner == user && mode & 0o011 == 0 {
                return Ok(());
            }
            // In a sticky folder others cannot replace what is not theirs.
            if mode & WRITABLE != 0 && mode & STICKY == 0 {
                return Err(format!(
                    "another can be put in its place: others can write to {} (mode {:o})",
                    folder.display(),
                    mode & 0o7777
                ));
            }
        }
        Ok(())
    }

    /// By the group or by all.
    const WRITABLE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
}

/// By path. Who may write to a profile's folders is for their access lists to say; they are not looked at.
#[cfg(not(unix))]
mod system {
    use std::fs::{DirBuilder, OpenOptions};
    use std::path::PathBuf;

    use super::*;

    pub(crate) struct Folder(PathBuf);

    impl Folder {
        pub(crate) fn open(path: &Path) -> io::Result<Self> {
            fs::read_dir(path)?;
            Ok(Folder(path.into()))
        }

        pub(super) fn demand_own(&self) -> Result<(), String> {
            Ok(())
        }

        pub(super) fn open_own(&self, name: &str) -> io::Result<Option<File>> {
            let path = self.0.join(name);
            match fs::symlink_metadata(&path) {
                Ok(of) if of.is_file() => File::open(path).map(Some),
                Ok(_) => Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        }

        pub(crate) fn create(&self, name: &str) -> io::Result<File> {
            OpenOptions::new().write(true).create_new(true).open(self.0.join(name))
        }

        pub(crate) fn open_or_create(&self, name: &str) -> io::Result<File> {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.0.join(name))
        }

        pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.0.join(from), self.0.join(to))
        }

        pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
            fs::remove_file(self.0.join(name))
        }

        pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
            fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name())).collect()
        }
    }

    pub(super) fn builder() -> DirBuilder {
        DirBuilder::new()
    }

    pub(super) fn demand_fixed(_parent: &Path) -> Result<(), String> {
        Ok(())
    }
}
