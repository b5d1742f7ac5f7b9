//! Typed settings of the hidden verbs, and how they are written as arguments.
//!
//! The processes of a host start each other (`__host` the supervisor, the supervisor its balancers and
//! keepers), so each kind of settings is both read from and written to an argument vector, and a test
//! checks that the two agree. Nothing secret is ever in one: arguments can be read by everybody.

use keelway_deploy::protocol::ReplicaId;
use keelway_model::ids::AppName;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where everything of a host lies unless said otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/keelway";

/// An argument that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{verb}: {problem}; this verb is for keelway's own use, see docs/deploying.md")]
pub struct ArgsError {
    verb: &'static str,
    problem: String,
}

/// The private network of a host's replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Name of the bridge.
    pub bridge: String,
    /// First address of the range; the bridge itself gets the next one.
    pub subnet: Ipv4Addr,
    /// Length of its prefix.
    pub prefix: u8,
    /// First host port that is forwarded to a replica.
    pub first_port: u16,
    /// How many replicas (addresses, ports) there can be.
    pub slots: u16,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            bridge: "kw0".into(),
            subnet: Ipv4Addr::new(10, 88, 0, 0),
            prefix: 16,
            first_port: 20_000,
            slots: 10_000,
        }
    }
}

/// What every process of a host must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Root of all state: the store is `store`, the host's own state `host`.
    pub root: PathBuf,
    /// Network.
    pub network: NetworkSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self { root: DEFAULT_ROOT.into(), network: NetworkSettings::default() }
    }
}

impl Settings {
    /// The content store.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }
    /// The binaries that deployers brought.
    pub fn binaries(&self) -> PathBuf {
        self.root.join("bin")
    }
    /// State of the host, mode 0700.
    pub fn state(&self) -> PathBuf {
        self.root.join("host")
    }
    /// Sockets. Their paths must stay short: a socket's name has at most 107 bytes.
    pub fn sockets(&self) -> PathBuf {
        self.state().join("sock")
    }
    fn write(&self, out: &mut Vec<OsString>) {
        let n = &self.network;
        for (flag, value) in [
            ("--root", self.root.clone().into_os_string()),
            ("--bridge", n.bridge.clone().into()),
            ("--subnet", format!("{}/{}", n.subnet, n.prefix).into()),
            ("--ports", format!("{}+{}", n.first_port, n.slots).into()),
        ] {
            out.push(flag.into());
            out.push(value);
        }
    }
}

/// `__host`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSettings {
    /// The host.
    pub settings: Settings,
    /// Address under which the caller reached this host: from `SSH_CONNECTION`.
    pub address: Option<IpAddr>,
}

impl HostSettings {
    /// Reads the arguments after `__host`; `ssh_connection` is the variable of that name, where it is set
    /// (sudo may drop it: then `--ssh-connection` carries it).
    pub fn from_args(args: &[OsString], ssh_connection: Option<&str>) -> Result<Self, ArgsError> {
        let mut out = Self { settings: Settings::default(), address: ssh_connection.and_then(server_side) };
        Args::new("__host", args).each(|name, value| match name {
            "--ssh-connection" => {
                out.address = server_side(&value.text()?);
                Ok(())
            }
            _ => common(&mut out.settings, name, value),
        })?;
        Ok(out)
    }
    /// The inverse.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut out = Vec::new();
        self.settings.write(&mut out);
        out
    }
}

/// Third word of `client-address client-port server-address server-port`; loopback is nobody's address.
fn server_side(ssh_connection: &str) -> Option<IpAddr> {
    let text = ssh_connection.split_whitespace().nth(2)?;
    // A link-local address carries its interface.
    let address: IpAddr = text.split('%').next()?.parse().ok()?;
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// What a `__supervise` process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The one supervisor of the host.
    Supervisor,
    /// The keeper of one replica.
    Keeper {
        /// Its app.
        app: AppName,
        /// Which.
        replica: ReplicaId,
    },
}

/// `__supervise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperviseSettings {
    /// The host.
    pub settings: Settings,
    /// Supervisor or keeper.
    pub role: Role,
}

impl SuperviseSettings {
    /// Reads the arguments after `__supervise`.
    pub fn from_args(args: &[OsString]) -> Result<Self, ArgsError> {
        let mut settings = Settings::default();
        let (mut app, mut replica) = (None, None);
        let args = Args::new("__supervise", args);
        args.each(|name, value| match name {
            "--app" => value.parse().map(|v| app = Some(v)),
            "--replica" => value.parse().map(|v| replica = Some(v)),
            _ => common(&mut settings, name, value),
        })?;
        let role = match (app, replica) {
            (None, None) => Role::Supervisor,
            (Some(app), Some(replica)) => Role::Keeper { app, replica },
            _ => return Err(args.error("--app and --replica go together")),
        };
        Ok(Self { settings, role })
    }
    /// The inverse.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut out = Vec::new();
        self.settings.write(&mut out);
        if let Role::Keeper { app, replica } = &self.role {
            out.extend(["--app".into(), app.to_string().into()]);
            out.extend(["--replica".into(), replica.to_string().into()]);
        }
        out
    }
}

/// How long a balancer waits for whom before it gives an exchange up. Whoever makes progress, however slowly, is waited
/// for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// For a client that takes nothing of its answer, or sends nothing of a body that its replica would take.
    pub client: Duration,
    /// For a request or answer in which nothing moves in either direction, the time until an answer begins included.
    pub exchange: Duration,
    /// For a WebSocket in which nothing moves in either direction.
    pub tunnel: Duration,
    /// The same while its replica is drained or the balancer ends.
    pub tunnel_drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            client: Duration::from_secs(20),
            exchange: Duration::from_secs(300),
            tunnel: Duration::from_secs(3600),
            tunnel_drain: Duration::from_secs(5),
        }
    }
}

/// Longest wait that can be set: a day.
const MAX_PATIENCE_MS: u64 = 86_400_000;

impl Patience {
    fn each(&mut self) -> [(&'static str, &mut Duration); 4] {
        [
            ("--client-ms", &mut self.client),
            ("--exchange-ms", &mut self.exchange),
            ("--tunnel-ms", &mut self.tunnel),
            ("--tunnel-drain-ms", &mut self.tunnel_drain),
        ]
    }
    /// Takes an option that is one of these; false when it is none.
    fn take(&mut self, name: &str, value: &Value<'_>) -> Result<bool, ArgsError> {
        let Some((_, bound)) = self.each().into_iter().find(|(flag, _)| *flag == name) else {
            return Ok(false);
        };
        let ms: u64 = value.parse()?;
        if !(1..=MAX_PATIENCE_MS).contains(&ms) {
            return Err(value.error("is not between a millisecond and a day"));
        }
        *bound = Duration::from_millis(ms);
        Ok(true)
    }
}

/// `__balancer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerSettings {
    /// The host.
    pub settings: Settings,
    /// Whose balancer.
    pub app: AppName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How long it waits for whom.
    pub patience: Patience,
}

impl BalancerSettings {
    /// Reads the arguments after `__balancer`.
    pub fn from_args(args: &[OsString]) -> Result<Self, ArgsError> {
        let mut settings = Settings::default();
        let (mut app, mut listen, mut patience) = (None, None, Patience::default());
        let args = Args::new("__balancer", args);
        args.each(|name, value| match name {
            "--app" => value.parse().map(|v| app = Some(v)),
            "--listen" => {
                let text = value.text()?;
                listen =
                    Some(listen_address(&text).ok_or_else(|| value.error("is not an address to listen on"))?);
                Ok(())
            }
            _ if patience.take(name, &value)? => Ok(()),
            _ => common(&mut settings, name, value),
        })?;
        match (app, listen) {
            (Some(app), Some(listen)) => Ok(Self { settings, app, listen, patience }),
            _ => Err(args.error("--app and --listen are needed")),
        }
    }
    /// The inverse.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut out = Vec::new();
        self.settings.write(&mut out);
        out.extend(["--app".into(), self.app.to_string().into()]);
        out.extend(["--listen".into(), self.listen.to_string().into()]);
        for (flag, bound) in self.patience.clone().each() {
            out.extend([flag.into(), bound.as_millis().to_string().into()]);
        }
        out
    }
}

/// `:80` (every IPv4 address), `192.0.2.1:80` or `[2001:db8::1]:80`. Port 0 is refused: nobody would find it.
pub fn listen_address(text: &str) -> Option<SocketAddr> {
    let address = match text.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.parse().ok()?))
        }
        Some(_) => return None,
        None => text.parse().ok()?,
    };
    (address.port() != 0).then_some(address)
}

fn common(settings: &mut Settings, name: &str, value: Value<'_>) -> Result<(), ArgsError> {
    match name {
        "--root" => {
            settings.root = value.raw.into();
            if !settings.root.is_absolute() {
                return Err(value.error("must be an absolute path"));
            }
        }
        "--bridge" => {
            let text = value.text()?;
            // 15 bytes is what the kernel allows for a name; the interfaces of replicas are the bridge's, `v`
            // and a number.
            let fits = !text.is_empty()
                && text.len() <= 9
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !text.starts_with('-');
            if !fits {
                return Err(value.error("is not a name for a bridge"));
            }
            settings.network.bridge = text;
        }
        "--subnet" => {
            let text = value.text()?;
            let parsed = text.split_once('/').and_then(|(a, p)| {
                let (address, prefix): (Ipv4Addr, u8) = (a.parse().ok()?, p.parse().ok()?);
                let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                ((8..=24).contains(&prefix) && u32::from(address) & host_bits == 0)
                    .then_some((address, prefix))
            });
            let Some((subnet, prefix)) = parsed else {
                return Err(value.error("is not a network such as 10.88.0.0/16"));
            };
            settings.network.subnet = subnet;
            settings.network.prefix = prefix;
        }
        "--ports" => {
            let text = value.text()?;
            let parsed = text.split_once('+').and_then(|(first, slots)| {
                let (first, slots): (u16, u16) = (first.parse().ok()?, slots.parse().ok()?);
                (first >= 1024 && slots >= 1 && first.checked_add(slots).is_some()).then_some((first, slots))
            });
            let Some((first, slots)) = parsed else {
                return Err(value.error("is not a range of ports such as 20000+10000"));
            };
            settings.network.first_port = first;
            settings.network.slots = slots;
        }
        _ => return Err(value.error("is not an option of it")),
    }
    Ok(())
}

/// `--name value` pairs.
struct Args<'a> {
    verb: &'static str,
    args: &'a [OsString],
}

struct Value<'a> {
    verb: &'static str,
    name: &'a str,
    raw: &'a OsString,
}

impl<'a> Args<'a> {
    const fn new(verb: &'static str, args: &'a [OsString]) -> Self {
        Self { verb, args }
    }
    fn error(&self, problem: impl Into<String>) -> ArgsError {
        ArgsError { verb: self.verb, problem: problem.into() }
    }
    fn each(
        &self,
        mut take: impl FnMut(&'a str, Value<'a>) -> Result<(), ArgsError>,
    ) -> Result<(), ArgsError> {
        let mut pairs = self.args.chunks_exact(2);
        for pair in &mut pairs {
            let name = pair[0].to_str().ok_or_else(|| self.error("an option is not UTF-8"))?;
            take(name, Value { verb: self.verb, name, raw: &pair[1] })?;
        }
        match pairs.remainder() {
            [] => Ok(()),
            [last, ..] => Err(self.error(format!("{last:?} needs a value"))),
        }
    }
}

impl Value<'_> {
    fn error(&self, what: &str) -> ArgsError {
        ArgsError { verb: self.verb, problem: format!("{} {:?} {what}", self.name, self.raw) }
    }
    fn text(&self) -> Result<String, ArgsError> {
        self.raw.to_str().map(str::to_owned).ok_or_else(|| self.error("is not UTF-8"))
    }
    fn parse<T: FromStr>(&self) -> Result<T, ArgsError>
    where
        T::Err: std::fmt::Display,
    {
        self.text()?.parse().map_err(|e: T::Err| self.error(&format!("is wrong: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let settings = Settings {
            root: "/tmp/x y".into(),
            network: NetworkSettings {
                bridge: "kwt".into(),
                subnet: Ipv4Addr::new(10, 99, 4, 0),
                prefix: 22,
                first_port: 21_000,
                slots: 50,
            },
        };
        let host = HostSettings { settings: settings.clone(), address: None };
        assert_eq!(HostSettings::from_args(&host.to_args(), None), Ok(host));
        for role in
            [Role::Supervisor, Role::Keeper { app: "web".parse().unwrap(), replica: "r3-1".parse().unwrap() }]
        {
            let s = SuperviseSettings { settings: settings.clone(), role };
            assert_eq!(SuperviseSettings::from_args(&s.to_args()), Ok(s));
        }
        let patience = Patience { client: Duration::from_millis(1500), ..Patience::default() };
        let (app, listen) = ("web".parse().unwrap(), "0.0.0.0:80".parse().unwrap());
        let b = BalancerSettings { settings, app, listen, patience };
        assert_eq!(BalancerSettings::from_args(&b.to_args()), Ok(b));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in [
            &["--root"][..],
            &["--root", "relative"],
            &["--bridge", "a/b"],
            &["--bridge", "0123456789"],
            &["--subnet", "10.88.0.1/16"],
            &["--subnet", "10.88.0.0/33"],
            &["--ports", "65000+1000"],
            &["--ports", "20000"],
            &["--app", "../x", "--replica", "r1-0"],
            &["--app", "x"],
            &["--what", "x"],
        ] {
            let error = SuperviseSettings::from_args(&os(bad)).expect_err("refused").to_string();
            assert!(error.starts_with("__supervise: "), "{error}");
        }
        for bad in [&["--listen", ":0"][..], &["--listen", ":1", "--tunnel-ms", "0"]] {
            assert!(BalancerSettings::from_args(&os(&[&["--app", "x"], bad].concat())).is_err());
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(listen_address(":80"), Some("0.0.0.0:80".parse().unwrap()));
        for bad in ["80", ":", ":+80", ":70000", "a:80", ":0"] {
            assert_eq!(listen_address(bad), None, "{bad}");
        }
        let at = |text| HostSettings::from_args(&[], Some(text)).unwrap().address;
        assert_eq!(at("198.18.0.9 50000 198.18.0.2 22"), Some("198.18.0.2".parse().unwrap()));
        assert_eq!(at("127.0.0.1 50000 127.0.0.1 22"), None);
        assert_eq!(at(""), None);
    }
}
