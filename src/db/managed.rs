//! A private Postgres server: made, started, adopted and stopped by Hilum itself, with the programs that the machine's
//! Postgres package installed. `hilum dev` keeps its data in one, and all tests share a throw-away one.
//!
//! The server listens on a Unix socket in a folder that only its own user (and root) can enter, and nowhere else.
//! It outlives a process that is killed: the next [`ManagedPostgres::start`] on the same folder adopts it.
//! Postgres refuses to run as root, so root starts it as the user `postgres`; if that user cannot reach the data
//! folder (`/root` is closed to it), the cluster lies below [`ManagedPostgresOptions::fallback_folder`] and the file
//! `postgres.location` in the data folder says where.
//!
//! What it writes: `postgres/cluster` (Postgres's own files), `postgres/server.log` (no statements, no values),
//! `postgres/socket`, and `postgres.lock` beside them.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use fs_err::tokio as fs;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::process::Command;

use crate::types::Sha256Digest;

/// Where a cluster lies when the user `postgres` cannot reach the data folder.
pub const DEFAULT_FALLBACK_FOLDER: &str = "/var/lib/hilum";

/// The database role that owns everything in a managed server.
const ROLE: &str = "hilum";
/// The longest path of a Unix socket on Linux, in bytes, without its final zero.
const MAXIMUM_SOCKET_PATH_BYTES: usize = 107;
/// What Postgres calls its socket in the socket folder (port 5432 names the file; nothing listens on TCP).
const SOCKET_FILE: &str = ".s.PGSQL.5432";
/// How long a server that is there may take to answer, and dying processes to be gone.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long `pg_ctl` waits for a start (which may recover from a crash) or a stop, in seconds.
const PG_CTL_TIMEOUT_S: &str = "120";
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ManagedPostgresOptions {
    /// The folder whose sub-folder `postgres` holds everything; created when missing.
    pub data_folder: PathBuf,
    /// Whether committed data survives a power cut (fsync). Off only for data that nobody misses: tests.
    pub durable: bool,
    /// The database, created when missing: 1 to 63 of `a-z`, `0-9` and `_`, not starting with a digit.
    pub database_name: String,
    /// Where the cluster goes when the server's user cannot reach `data_folder`; `None` makes that an error.
    pub fallback_folder: Option<PathBuf>,
}

impl ManagedPostgresOptions {
    /// A durable server in `data_folder` with the database `hilum`, and [`DEFAULT_FALLBACK_FOLDER`].
    pub fn durable(data_folder: impl Into<PathBuf>) -> Self {
        Self {
            data_folder: data_folder.into(),
            durable: true,
            database_name: "hilum".to_owned(),
            fallback_folder: Some(PathBuf::from(DEFAULT_FALLBACK_FOLDER)),
        }
    }

    /// A fast server in `data_folder` for data that nobody misses, with the database `hilum` and no fallback.
    pub fn throw_away(data_folder: impl Into<PathBuf>) -> Self {
        Self {
            data_folder: data_folder.into(),
            durable: false,
            database_name: "hilum".to_owned(),
            fallback_folder: None,
        }
    }
}

/// Why the server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ManagedPostgresError {
    /// The Postgres server is not installed.
    #[error(
        "the Postgres programs initdb, pg_ctl and postgres are not installed (searched /usr/lib/postgresql/*/bin, \
         /usr/pgsql-*/bin and the PATH); install the package `postgresql`"
    )]
    ProgramsMissing,
    /// The data were made by another major version, whose programs are gone.
    #[error(
        "the cluster {cluster} was made by Postgres {wanted} and only version {installed} is installed; install \
         `postgresql-{wanted}`, or move the cluster away to start with an empty database"
    )]
    OtherVersion {
        /// The cluster's folder.
        cluster: PathBuf,
        /// The major version that made it.
        wanted: String,
        /// What is installed.
        installed: String,
    },
    /// We are root and there is no user to run the server as.
    #[error(
        "Postgres refuses to run as root and there is no user `postgres` to run it as ({0}); install the package \
         `postgresql`, which makes that user, or start hilum as an ordinary user"
    )]
    NoServerUser(String),
    /// The server's user cannot reach the folder.
    #[error(
        "the user of the Postgres server (id {user_id}) cannot use {folder}: {obstacle} is closed to it; \
         choose a data folder below a folder that everybody may enter, such as /srv or /var/lib"
    )]
    Unreachable {
        /// The folder that it should use.
        folder: PathBuf,
        /// The user's id.
        user_id: u32,
        /// The folder that stops it.
        obstacle: PathBuf,
    },
    /// The cluster belongs to another user.
    #[error(
        "the cluster {cluster} belongs to user id {owner_id}; start hilum as that user or as root, or choose another \
         data folder"
    )]
    OtherOwner {
        /// The cluster's folder.
        cluster: PathBuf,
        /// Whose it is.
        owner_id: u32,
    },
    /// The database name would need quoting.
    #[error("the database name `{0}` is not 1 to 63 of a-z, 0-9 and _, starting with a letter or _")]
    DatabaseName(String),
    /// A folder or file cannot be used.
    #[error("the folder of Postgres cannot be prepared: {0}")]
    Folder(#[from] io::Error),
    /// A Postgres program failed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// Which.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// Processes of a dead or stuck server hold the cluster.
    #[error(
        "the Postgres processes {processes:?} hold {cluster} and do not answer; look into {log} and end them before \
         you start again"
    )]
    Stuck {
        /// The cluster's folder.
        cluster: PathBuf,
        /// Their process ids.
        processes: Vec<u32>,
        /// The server's log.
        log: PathBuf,
    },
    /// The server runs but a query failed.
    #[error("the managed Postgres does not do what it is asked: {0}")]
    Query(#[from] sqlx::Error),
}

/// A running private server. Dropping this leaves it running, to be adopted later; [`ManagedPostgres::stop`] ends it.
#[derive(Debug)]
pub struct ManagedPostgres {
    home: Home,
    programs: Programs,
    socket_folder: PathBuf,
    process_id: u32,
    adopted: bool,
    database_name: String,
}

impl ManagedPostgres {
    /// Starts the server of a folder, or adopts the one that is running there, and makes sure of the database.
    ///
    /// Several processes may start the same folder at once: the first starts it, the others adopt it.
    pub async fn start(options: &ManagedPostgresOptions) -> Result<Self, ManagedPostgresError> {
        check_database_name(&options.database_name)?;
        fs::create_dir_all(&options.data_folder).await?;
        let data_folder = fs::canonicalize(&options.data_folder).await?;
        let _lock = lock(data_folder.join("postgres.lock")).await?;
        let home = Home::find_or_make(&data_folder, options.fallback_folder.as_deref()).await?;
        let programs = Programs::for_cluster(&home).await?;

        let mut running = home.answering_server().await?;
        if let Some(server) = &running
            && options.durable
            && server.setting("fsync").await? == "off"
        {
            // Somebody started it for throw-away data; ours are not.
            home.stop(&programs).await?;
            running = None;
        }
        let adopted = running.is_some();
        let server = match running {
            Some(server) => server,
            None => home.start(&programs, options.durable).await?,
        };
        tracing::info!(
            process_id = server.process_id,
            cluster = %home.cluster().display(),
            adopted,
            durable = options.durable,
            "managed Postgres is up"
        );
        server.create_database(&options.database_name).await?;
        Ok(Self {
            socket_folder: server.socket_folder,
            process_id: server.process_id,
            home,
            programs,
            adopted,
            database_name: options.database_name.clone(),
        })
    }

    /// Stops the server: running statements are cancelled, committed data are kept. Succeeds if it is gone already.
    pub async fn stop(&self) -> Result<(), ManagedPostgresError> {
        self.home.stop(&self.programs).await
    }

    /// The `postgres://` URL of the database, for [`super::Db::connect_lazy`] and for `psql`.
    pub fn connection_url(&self) -> String {
        self.connection_url_of(&self.database_name)
    }

    /// The same for another database of this server.
    pub fn connection_url_of(&self, database_name: &str) -> String {
        format!("postgres:///{database_name}?host={}&user={ROLE}&sslmode=disable", self.socket_folder.display())
    }

    /// The folder of the Unix socket (`psql -h`).
    pub fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// The database role (`psql -U`); it owns the server.
    pub fn user(&self) -> &'static str {
        ROLE
    }

    /// The database (`psql -d`).
    pub fn database_name(&self) -> &str {
        &self.database_name
    }

    /// The folder of Postgres's own files.
    pub fn cluster_folder(&self) -> PathBuf {
        self.home.cluster()
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.home.log()
    }

    /// The process id of the server.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }

    /// Whether the server was running before we came.
    pub fn adopted(&self) -> bool {
        self.adopted
    }
}

fn check_database_name(name: &str) -> Result<(), ManagedPostgresError> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let holds_only = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if starts_well && holds_only && name.len() <= 63 {
        Ok(())
    } else {
        Err(ManagedPostgresError::DatabaseName(name.to_owned()))
    }
}

/// Waits until no other process is starting the same server. The lock ends with the file.
async fn lock(path: PathBuf) -> Result<fs_err::File, ManagedPostgresError> {
    let file = tokio::task::spawn_blocking(move || {
        let file = fs_err::File::options().create(true).truncate(false).write(true).open(path)?;
        file.file().lock()?;
        Ok::<_, io::Error>(file)
    });
    Ok(file.await.map_err(io::Error::other)??)
}

/// The user that the server's processes run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ServerUser {
    user_id: u32,
    group_id: u32,
    /// Whether that is another user than ours, so that the programs must be started as it.
    other: bool,
}

impl ServerUser {
    /// The owner of an existing cluster; else ourselves, or `postgres` when we are root.
    async fn find(cluster: &Path) -> Result<Self, ManagedPostgresError> {
        let own = fs::metadata("/proc/self").await?;
        match fs::metadata(cluster).await {
            Ok(found) if found.uid() != own.uid() => {
                if own.uid() != 0 {
                    return Err(ManagedPostgresError::OtherOwner {
                        cluster: cluster.to_owned(),
                        owner_id: found.uid(),
                    });
                }
                return Ok(Self { user_id: found.uid(), group_id: found.gid(), other: true });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if own.uid() != 0 {
            return Ok(Self { user_id: own.uid(), group_id: own.gid(), other: false });
        }
        Ok(Self { user_id: id_of_postgres("-u").await?, group_id: id_of_postgres("-g").await?, other: true })
    }

    /// A command that runs as this user, from a folder that everybody can enter and without `PG…` variables that
    /// would point it elsewhere. Setting the user drops root's supplementary groups too.
    fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        if self.other {
            command.uid(self.user_id).gid(self.group_id).env("HOME", "/");
        }
        command
    }

    async fn can_use(self, folder: &Path) -> Result<bool, ManagedPostgresError> {
        let mut test = self.command("test");
        test.arg("-w").arg(folder).arg("-a").arg("-x").arg(folder);
        Ok(test.stdout(Stdio::null()).stderr(Stdio::null()).status().await?.success())
    }

    /// The outermost folder on the way that this user may not enter, judged by the permission bits.
    fn obstacle(self, folder: &Path) -> PathBuf {
        let mut way: Vec<&Path> = folder.ancestors().collect();
        way.reverse();
        let closed = way.into_iter().find(|step| {
            fs_err::metadata(step).is_ok_and(|found| {
                let (mode, owner, group) = (found.permissions().mode(), found.uid(), found.gid());
                let bit = match () {
                    () if owner == self.user_id => 0o100,
                    () if group == self.group_id => 0o010,
                    () => 0o001,
                };
                mode & bit == 0
            })
        });
        closed.unwrap_or(folder).to_owned()
    }
}

async fn id_of_postgres(which: &str) -> Result<u32, ManagedPostgresError> {
    let output = Command::new("id").args([which, "postgres"]).stdin(Stdio::null()).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .map_err(|_| ManagedPostgresError::NoServerUser(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// One installation of the Postgres server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The newest installation, or the one whose major version made the cluster.
    async fn for_cluster(home: &Home) -> Result<Self, ManagedPostgresError> {
        let folders = program_folders();
        let newest = folders.first().ok_or(ManagedPostgresError::ProgramsMissing)?;
        let version_file = home.cluster().join("PG_VERSION");
        let wanted = match fs::read_to_string(&version_file).await {
            Ok(version) => version.trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { folder: newest.clone() }),
            Err(error) => return Err(error.into()),
        };
        let mut installed = Vec::new();
        for folder in &folders {
            let version = major_version(folder).await?;
            if version == wanted {
                return Ok(Self { folder: folder.clone() });
            }
            installed.push(version);
        }
        installed.dedup();
        Err(ManagedPostgresError::OtherVersion { cluster: home.cluster(), wanted, installed: installed.join(", ") })
    }

    fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }
}

/// Folders holding a complete server: Debian's and Red Hat's versioned ones, newest first, then those on the PATH.
fn program_folders() -> Vec<PathBuf> {
    let mut versioned: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        let Ok(entries) = fs_err::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|text| text.parse().ok());
            if let Some(version) = version {
                versioned.push((version, entry.path().join("bin")));
            }
        }
    }
    versioned.sort_by(|left, right| right.cmp(left));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = versioned.into_iter().map(|(_, folder)| folder).collect();
    folders.extend(std::env::split_paths(&on_path).filter(|folder| folder.is_absolute()));
    folders.retain(|folder| ["initdb", "pg_ctl", "postgres"].iter().all(|program| folder.join(program).is_file()));
    folders
}

/// `15` from "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)".
async fn major_version(folder: &Path) -> Result<String, ManagedPostgresError> {
    let output = Command::new(folder.join("postgres")).arg("--version").stdin(Stdio::null()).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    Ok(number.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect())
}

/// The folder that holds everything of one server, and whose it is.
#[derive(Debug)]
struct Home {
    folder: PathBuf,
    user: ServerUser,
}

impl Home {
    /// `postgres` in the data folder, or what `postgres.location` names there, or a new folder below the fallback.
    async fn find_or_make(data_folder: &Path, fallback: Option<&Path>) -> Result<Self, ManagedPostgresError> {
        let location_file = data_folder.join("postgres.location");
        let known = match fs::read_to_string(&location_file).await {
            Ok(location) => Some(PathBuf::from(location.trim_end_matches('\n'))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let folder = known.clone().unwrap_or_else(|| data_folder.join("postgres"));
        let home = Self::make(folder).await?;
        if home.user.can_use(&home.folder).await? {
            return Ok(home);
        }
        let unreachable = ManagedPostgresError::Unreachable {
            user_id: home.user.user_id,
            obstacle: home.user.obstacle(&home.folder),
            folder: home.folder.clone(),
        };
        // Data that are there already are never replaced by an empty database elsewhere.
        let (None, Some(fallback), false) = (known, fallback, fs::try_exists(home.cluster()).await?) else {
            return Err(unreachable);
        };
        fs::remove_dir(&home.folder).await?;
        let home = Self::make(fallback.join(format!("postgres-{}", uuid::Uuid::now_v7().simple()))).await?;
        if !home.user.can_use(&home.folder).await? {
            fs::remove_dir(&home.folder).await?;
            return Err(unreachable);
        }
        tracing::info!(
            data_folder = %data_folder.display(),
            location = %home.folder.display(),
            "the user of the Postgres server cannot reach the data folder: the database lies elsewhere"
        );
        let part = data_folder.join("postgres.location.part");
        fs::write(&part, format!("{}\n", home.folder.display())).await?;
        sync(&part).await?;
        fs::rename(&part, &location_file).await?;
        sync(data_folder).await?;
        Ok(home)
    }

    /// The folder, made when missing, open to the server's user alone.
    async fn make(folder: PathBuf) -> Result<Self, ManagedPostgresError> {
        let user = ServerUser::find(&folder.join("cluster")).await?;
        fs::create_dir_all(&folder).await?;
        fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).await?;
        if user.other {
            std::os::unix::fs::chown(&folder, Some(user.user_id), Some(user.group_id))?;
        }
        Ok(Self { folder: fs::canonicalize(folder).await?, user })
    }

    fn cluster(&self) -> PathBuf {
        self.folder.join("cluster")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// The server that runs on this cluster and answers, if there is one. Waits a while for one that is starting.
    async fn answering_server(&self) -> Result<Option<Server>, ManagedPostgresError> {
        let pid_file = self.cluster().join("postmaster.pid");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = match fs::read_to_string(&pid_file).await {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // Line 1 is the process id and line 5 the socket folder, once the server has come that far.
            let mut lines = text.lines();
            let process_id = lines.next().and_then(|line| line.trim().parse().ok());
            let socket_folder = lines.nth(3).unwrap_or_default();
            let Some(process_id) = process_id else { return Ok(None) };
            if !self.processes().await?.contains(&process_id) {
                return Ok(None);
            }
            let server = Server { process_id, socket_folder: PathBuf::from(socket_folder) };
            if server.socket_folder.is_absolute()
                && let Ok(data_folder) = server.setting("data_directory").await
                && Path::new(&data_folder) == self.cluster()
            {
                return Ok(Some(server));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The living processes of a server on this cluster: every one of them works in the cluster's folder.
    ///
    /// The server's own user looks, because root in a container may not read where other users' processes work.
    async fn processes(&self) -> Result<Vec<u32>, ManagedPostgresError> {
        let mut pattern = OsString::new();
        for part in self.cluster().to_string_lossy().chars() {
            if "*?[]\\".contains(part) {
                pattern.push("\\");
            }
            pattern.push(part.to_string());
        }
        let mut find = self.user.command("find");
        find.args(["/proc", "-maxdepth", "2", "-name", "cwd", "-lname"]).arg(pattern).args(["-printf", "%h\\n"]);
        let output = find.stderr(Stdio::null()).output().await?;
        let is_postgres = |id: &u32| {
            std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("postgres"))
        };
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.strip_prefix("/proc/")?.parse().ok())
            .filter(is_postgres)
            .collect())
    }

    async fn wait_until_nobody_holds_it(&self) -> Result<(), ManagedPostgresError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.processes().await?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ManagedPostgresError::Stuck { cluster: self.cluster(), processes, log: self.log() });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts the server, after making the cluster if there is none.
    async fn start(&self, programs: &Programs, durable: bool) -> Result<Server, ManagedPostgresError> {
        if !fs::try_exists(self.cluster()).await? {
            self.initialise(programs, durable).await?;
        }
        // The children of a killed server take a moment to notice. Once nobody works in the cluster, its lock files
        // are stale for certain, although a zombie or a stranger may still have the process id that they name.
        self.wait_until_nobody_holds_it().await?;
        let socket_folder = self.make_socket_folder().await?;
        remove_if_there(&self.cluster().join("postmaster.pid")).await?;
        remove_if_there(&socket_folder.join(format!("{SOCKET_FILE}.lock"))).await?;
        remove_if_there(&socket_folder.join(SOCKET_FILE)).await?;

        fs::write(self.cluster().join("hilum.conf"), settings(&socket_folder, durable)).await?;
        // The log tells about this start only, because error messages quote it; the one before is kept beside it.
        match fs::rename(self.log(), self.folder.join("server.previous.log")).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => fs::write(self.log(), b"").await?,
        }
        if self.user.other {
            std::os::unix::fs::chown(self.log(), Some(self.user.user_id), Some(self.user.group_id))?;
        }
        let started = self
            .run(
                programs,
                "pg_ctl",
                [
                    OsStr::new("start"),
                    "-w".as_ref(),
                    "-t".as_ref(),
                    PG_CTL_TIMEOUT_S.as_ref(),
                    "-D".as_ref(),
                    self.cluster().as_os_str(),
                    "-l".as_ref(),
                    self.log().as_os_str(),
                ],
            )
            .await;
        if let Err(ManagedPostgresError::Program { program, status, .. }) = started {
            let log = fs::read_to_string(self.log()).await.unwrap_or_default();
            return Err(ManagedPostgresError::Program { program, status, output: last_lines(&log) });
        }
        started?;
        match self.answering_server().await? {
            Some(server) => Ok(server),
            None => Err(ManagedPostgresError::Stuck {
                cluster: self.cluster(),
                processes: self.processes().await?,
                log: self.log(),
            }),
        }
    }

    /// Makes the cluster beside its place and moves it there, so that it is whole or absent.
    async fn initialise(&self, programs: &Programs, durable: bool) -> Result<(), ManagedPostgresError> {
        let part = self.folder.join("cluster.part");
        match fs::remove_dir_all(&part).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut arguments: Vec<OsString> =
            ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"]
                .into_iter()
                .map(OsString::from)
                .collect();
        arguments.push(format!("--username={ROLE}").into());
        if !durable {
            arguments.push("--no-sync".into());
        }
        arguments.push("-D".into());
        arguments.push(part.clone().into());
        self.run(programs, "initdb", &arguments).await?;
        let configuration = part.join("postgresql.conf");
        let text = fs::read_to_string(&configuration).await?;
        fs::write(&configuration, format!("{text}\n# What Hilum sets anew at every start.\ninclude 'hilum.conf'\n"))
            .await?;
        if durable {
            sync(&configuration).await?;
        }
        fs::rename(&part, self.cluster()).await?;
        sync(&self.folder).await
    }

    /// A folder whose socket path fits: beside the cluster, or a short one under the temporary folder whose name
    /// follows from the cluster's.
    async fn make_socket_folder(&self) -> Result<PathBuf, ManagedPostgresError> {
        let beside = self.folder.join("socket");
        let folder = if fits_a_socket(&beside) {
            beside
        } else {
            let digest = Sha256Digest::of(self.folder.as_os_str().as_encoded_bytes()).to_string();
            PathBuf::from(format!("/tmp/hilum-postgres-{}", digest.get(..16).unwrap_or(&digest)))
        };
        match fs::create_dir(&folder).await {
            Ok(()) if self.user.other => {
                std::os::unix::fs::chown(&folder, Some(self.user.user_id), Some(self.user.group_id))?;
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        // Under the temporary folder anybody could have made it before us.
        let found = fs::symlink_metadata(&folder).await?;
        if !found.is_dir() || found.uid() != self.user.user_id {
            return Err(ManagedPostgresError::Unreachable {
                folder: folder.clone(),
                user_id: self.user.user_id,
                obstacle: folder,
            });
        }
        fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).await?;
        Ok(folder)
    }

    async fn stop(&self, programs: &Programs) -> Result<(), ManagedPostgresError> {
        if self.processes().await?.is_empty() {
            return Ok(());
        }
        let stopped = self
            .run(
                programs,
                "pg_ctl",
                [
                    OsStr::new("stop"),
                    "-m".as_ref(),
                    "fast".as_ref(),
                    "-w".as_ref(),
                    "-t".as_ref(),
                    PG_CTL_TIMEOUT_S.as_ref(),
                    "-D".as_ref(),
                    self.cluster().as_os_str(),
                ],
            )
            .await;
        match stopped {
            // It went while we asked, or its children are still ending: what counts is that nobody is left.
            Err(ManagedPostgresError::Program { .. }) if self.wait_until_nobody_holds_it().await.is_ok() => Ok(()),
            other => other,
        }
    }

    async fn run(
        &self,
        programs: &Programs,
        program: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<(), ManagedPostgresError> {
        let Output { status, stdout, stderr } =
            self.user.command(programs.path(program)).args(arguments).output().await?;
        if status.success() {
            return Ok(());
        }
        let said = format!("{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        Err(ManagedPostgresError::Program {
            program: program.to_owned(),
            status: status.to_string(),
            output: last_lines(&said),
        })
    }
}

/// Whether a socket in this folder has a path that the kernel takes and that needs no quoting anywhere.
fn fits_a_socket(folder: &Path) -> bool {
    let bytes = folder.as_os_str().as_encoded_bytes();
    bytes.len() + 1 + SOCKET_FILE.len() <= MAXIMUM_SOCKET_PATH_BYTES
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte))
}

/// The server's settings. Patient data never reach its log: neither statements nor the values in error details.
fn settings(socket_folder: &Path, durable: bool) -> String {
    let promise = if durable {
        "fsync = on\nsynchronous_commit = on\nfull_page_writes = on\n"
    } else {
        "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nwal_level = minimal\nmax_wal_senders = 0\n"
    };
    format!(
        "# Written by Hilum at every start of the server.\n\
         listen_addresses = ''\n\
         port = 5432\n\
         unix_socket_directories = '{}'\n\
         unix_socket_permissions = 0700\n\
         max_connections = 200\n\
         timezone = 'UTC'\n\
         log_timezone = 'UTC'\n\
         log_min_messages = warning\n\
         log_min_error_statement = panic\n\
         log_error_verbosity = terse\n\
         {promise}",
        socket_folder.display()
    )
}

/// The last lines that say something, on one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.get(lines.len().saturating_sub(5)..) {
        Some(last) if !last.is_empty() => last.join("; "),
        _ => "it said nothing".to_owned(),
    }
}

async fn sync(path: &Path) -> Result<(), ManagedPostgresError> {
    fs::File::open(path).await?.sync_all().await?;
    Ok(())
}

async fn remove_if_there(path: &Path) -> Result<(), ManagedPostgresError> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A server that runs.
#[derive(Debug)]
struct Server {
    process_id: u32,
    socket_folder: PathBuf,
}

impl Server {
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_folder)
            .port(5432)
            .username(ROLE)
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
            .application_name("hilum managed");
        PgConnection::connect_with(&options).await
    }

    async fn setting(&self, name: &str) -> Result<String, ManagedPostgresError> {
        let mut connection = self.connect().await?;
        let value = sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(value)
    }

    /// `name` has passed [`check_database_name`].
    async fn create_database(&self, name: &str) -> Result<(), ManagedPostgresError> {
        let mut connection = self.connect().await?;
        let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that the server's user may enter (temporary folders are closed to it by default).
    fn open_folder() -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("hilum-test-managed-").tempdir_in("/tmp").unwrap();
        fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    async fn value(server: &ManagedPostgres, query: &'static str) -> String {
        let options: PgConnectOptions = server.connection_url().parse().unwrap();
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        let value = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        value
    }

    async fn execute(server: &ManagedPostgres, query: &'static str) {
        let options: PgConnectOptions = server.connection_url().parse().unwrap();
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(query).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    fn kill_hard(process_id: u32) {
        let killed = std::process::Command::new("kill").args(["-KILL", &process_id.to_string()]).status().unwrap();
        assert!(killed.success());
    }

    #[tokio::test]
    async fn a_running_server_is_adopted_and_a_stopped_one_keeps_its_data() {
        let folder = open_folder();
        let mut options = ManagedPostgresOptions::durable(folder.path().join("data"));
        options.fallback_folder = None;
        let first = ManagedPostgres::start(&options).await.unwrap();
        assert!(!first.adopted());
        execute(&first, "create table film (id int); insert into film values (7)").await;
        assert_eq!(value(&first, "select current_database()::text").await, "hilum");
        assert_eq!(value(&first, "select current_setting('fsync')").await, "on");
        assert_eq!(value(&first, "select current_setting('listen_addresses')").await, "");
        assert_eq!(value(&first, "select current_setting('server_encoding')").await, "UTF8");

        options.database_name = "second".to_owned();
        let second = ManagedPostgres::start(&options).await.unwrap();
        assert!(second.adopted());
        assert_eq!(second.process_id(), first.process_id());
        assert_eq!(value(&second, "select current_database()::text").await, "second");

        second.stop().await.unwrap();
        assert!(PgConnection::connect(&first.connection_url()).await.is_err());
        second.stop().await.unwrap(); // Stopping twice is no error.

        options.database_name = "hilum".to_owned();
        let third = ManagedPostgres::start(&options).await.unwrap();
        assert!(!third.adopted());
        assert_eq!(value(&third, "select id::text from film").await, "7");
        third.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_server_is_started_again_with_what_was_committed() {
        let folder = open_folder();
        let mut options = ManagedPostgresOptions::durable(folder.path());
        options.fallback_folder = None;
        let server = ManagedPostgres::start(&options).await.unwrap();
        execute(&server, "create table film (id int); insert into film values (11)").await;
        // A backend in the middle of a statement outlives the postmaster for a moment and holds its memory.
        let url = server.connection_url();
        let busy = tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql("select pg_sleep(30)").execute(&mut connection).await
        });
        while value(
            &server,
            "select count(*)::text from pg_stat_activity where query like '%pg_sleep%' and state = 'active'",
        )
        .await
            != "2"
        {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        kill_hard(server.process_id());
        let again = ManagedPostgres::start(&options).await.unwrap();
        assert!(!again.adopted());
        assert_ne!(again.process_id(), server.process_id());
        assert!(busy.await.unwrap().is_err());
        assert_eq!(value(&again, "select id::text from film").await, "11");
        again.stop().await.unwrap();
    }

    #[tokio::test]
    async fn many_starters_at_once_share_one_server_even_over_a_torn_initdb() {
        let folder = open_folder();
        let torn = folder.path().join("postgres/cluster.part");
        fs_err::create_dir_all(&torn).unwrap();
        fs_err::write(torn.join("PG_VERSION"), "15\n").unwrap();
        let options = ManagedPostgresOptions::throw_away(folder.path());
        let (first, second, third) = tokio::join!(
            ManagedPostgres::start(&options),
            ManagedPostgres::start(&options),
            ManagedPostgres::start(&options)
        );
        let servers = [first.unwrap(), second.unwrap(), third.unwrap()];
        assert_eq!(servers.iter().filter(|server| server.adopted()).count(), 2);
        assert!(servers.iter().all(|server| server.process_id() == servers[0].process_id()));
        assert_eq!(value(&servers[1], "select current_setting('fsync')").await, "off");

        // Data that must last are never trusted to a server that was started without fsync.
        let mut durable = ManagedPostgresOptions::durable(folder.path());
        durable.fallback_folder = None;
        let server = ManagedPostgres::start(&durable).await.unwrap();
        assert!(!server.adopted());
        assert_eq!(value(&server, "select current_setting('fsync')").await, "on");
        server.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_the_server_cannot_use_is_named_or_avoided() {
        let own = fs_err::metadata("/proc/self").unwrap().uid();
        let folder = open_folder();
        let closed = folder.path().join("closed");
        fs_err::create_dir(&closed).unwrap();
        // Root passes every permission; its server's user does not. Others are stopped by a folder without `w`.
        let (mode, data_folder) = if own == 0 { (0o700, closed.join("data")) } else { (0o500, closed.clone()) };
        if own == 0 {
            fs_err::create_dir(&data_folder).unwrap();
        }
        fs_err::set_permissions(&closed, std::fs::Permissions::from_mode(mode)).unwrap();

        let mut options = ManagedPostgresOptions::throw_away(&data_folder);
        let error = ManagedPostgres::start(&options).await.unwrap_err();
        assert!(error.to_string().contains(closed.to_str().unwrap()), "{error}");
        if own != 0 {
            return;
        }
        assert!(matches!(&error, ManagedPostgresError::Unreachable { obstacle, .. } if *obstacle == closed), "{error}");

        options.fallback_folder = Some(folder.path().join("fallback"));
        let server = ManagedPostgres::start(&options).await.unwrap();
        assert!(server.cluster_folder().starts_with(folder.path().join("fallback")));
        execute(&server, "create table film (id int); insert into film values (5)").await;
        server.stop().await.unwrap();
        // The location is remembered, even when nobody names a fallback again.
        options.fallback_folder = None;
        let again = ManagedPostgres::start(&options).await.unwrap();
        assert_eq!(again.cluster_folder(), server.cluster_folder());
        assert_eq!(value(&again, "select id::text from film").await, "5");
        again.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_deep_or_odd_folder_gets_a_short_socket() {
        let folder = open_folder();
        let deep = folder.path().join("it's a [deep] folder").join("d".repeat(100));
        let server = ManagedPostgres::start(&ManagedPostgresOptions::throw_away(&deep)).await.unwrap();
        assert!(server.socket_folder().starts_with("/tmp"));
        assert!(server.socket_folder().join(SOCKET_FILE).as_os_str().len() <= MAXIMUM_SOCKET_PATH_BYTES);
        assert_eq!(value(&server, "select 'answers'").await, "answers");
        let adopted = ManagedPostgres::start(&ManagedPostgresOptions::throw_away(&deep)).await.unwrap();
        assert_eq!(adopted.process_id(), server.process_id());
        server.stop().await.unwrap();
        fs_err::remove_dir_all(server.socket_folder()).unwrap();
    }

    #[tokio::test]
    async fn a_cluster_of_another_version_is_refused_with_the_remedy() {
        let folder = open_folder();
        let cluster = folder.path().join("postgres/cluster");
        fs_err::create_dir_all(&cluster).unwrap();
        fs_err::write(cluster.join("PG_VERSION"), "9\n").unwrap();
        fs_err::set_permissions(&cluster, std::fs::Permissions::from_mode(0o700)).unwrap();
        let error = ManagedPostgres::start(&ManagedPostgresOptions::throw_away(folder.path())).await.unwrap_err();
        assert!(error.to_string().contains("install `postgresql-9`"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_cannot_start_says_why() {
        let folder = open_folder();
        let options = ManagedPostgresOptions::throw_away(folder.path());
        let server = ManagedPostgres::start(&options).await.unwrap();
        server.stop().await.unwrap();
        let configuration = server.cluster_folder().join("postgresql.conf");
        let text = fs_err::read_to_string(&configuration).unwrap();
        fs_err::write(&configuration, format!("{text}\nno_such_setting = 1\n")).unwrap();
        let error = ManagedPostgres::start(&options).await.unwrap_err();
        assert!(error.to_string().contains("no_such_setting"), "{error}");
    }

    #[test]
    fn only_plain_database_names_pass() {
        for good in ["hilum", "_x", "test_019a2b", &"a".repeat(63)] {
            assert!(check_database_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "Hilum", "a-b", "a b", "a\"; drop", "\u{e9}", &"a".repeat(64)] {
            assert!(matches!(check_database_name(bad), Err(ManagedPostgresError::DatabaseName(_))), "{bad}");
        }
    }

    #[test]
    fn a_socket_path_may_fill_the_limit_exactly() {
        let longest = MAXIMUM_SOCKET_PATH_BYTES - SOCKET_FILE.len() - 1;
        assert!(fits_a_socket(Path::new(&format!("/{}", "x".repeat(longest - 1)))));
        assert!(!fits_a_socket(Path::new(&format!("/{}", "x".repeat(longest)))));
        assert!(!fits_a_socket(Path::new("/tmp/it's")));
    }

    #[test]
    fn the_log_keeps_statements_and_values_out() {
        let text = settings(Path::new("/run/hilum"), true);
        assert!(text.contains("log_min_error_statement = panic") && text.contains("log_error_verbosity = terse"));
        assert!(text.contains("fsync = on") && !text.contains("off"));
    }
}
