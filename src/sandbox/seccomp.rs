//! The seccomp filter: an allow list, compiled to a balanced search over ranges of system call numbers.
//!
//! Neighbouring calls with the same answer become one range, and the program finds the range in a binary
//! search: about 120 instructions instead of the 1,500 of one comparison a call, and loading it takes a
//! tenth of the time. What is not on the list gets EPERM, so that programs fall back as they do on an old
//! kernel. Other architectures' system call tables are no way around it: they kill the process.

mod calls;
#[cfg(test)]
mod tests;

use libc::sock_filter;
use std::collections::{BTreeMap, BTreeSet};

const LD_W_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JA: u16 = 0x05;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

/// Offsets in seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARG0_LOW: u32 = 16;
const ARG1_LOW: u32 = 24;

#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xc000_00b7;

/// First number of the x32 table on x86_64; no such number exists elsewhere.
const X32: u32 = 0x4000_0000;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;
/// AF_ALG and AF_VSOCK.
const REFUSED_FAMILIES: [u32; 2] = [38, 40];
/// PER_LINUX, PER_LINUX32, both with UNAME26, and the query.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Terminal requests that type for another process.
const REFUSED_IOCTLS: [u32; 2] = [0x5412, 0x541c];

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// What a system call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// This return value of the filter.
    Give(u32),
    /// Refused when the low half of argument 0 has one of these bits.
    UnlessFlags(u32),
    /// Refused for these values of argument 0.
    UnlessFirst(&'static [u32]),
    /// Refused for these values of argument 1.
    UnlessSecond(&'static [u32]),
    /// Allowed for these values of argument 0 only.
    OnlyFirst(&'static [u32]),
}

fn answers() -> BTreeMap<u32, Answer> {
    let number = |n: libc::c_long| u32::try_from(n).expect("system call numbers are small and positive");
    let mut table: BTreeMap<u32, Answer> =
        calls::ALLOWED.iter().map(|n| (number(*n), Answer::Give(ALLOW))).collect();
    table.insert(number(libc::SYS_clone), Answer::UnlessFlags(NAMESPACE_FLAGS));
    // Its flags are behind a pointer; ENOSYS makes libc use clone.
    table.insert(number(libc::SYS_clone3), Answer::Give(ENOSYS));
    table.insert(number(libc::SYS_socket), Answer::UnlessFirst(&REFUSED_FAMILIES));
    table.insert(number(libc::SYS_personality), Answer::OnlyFirst(&PERSONALITIES));
    table.insert(number(libc::SYS_ioctl), Answer::UnlessSecond(&REFUSED_IOCTLS));
    table
}

/// The program for this machine's architecture.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut code = vec![
        statement(LD_W_ABS, ARCH),
        jump(JEQ, NATIVE_ARCH, 1, 0),
        statement(RET, KILL),
        statement(LD_W_ABS, NR),
    ];
    code.extend(search(&ranges(&answers())));
    code
}

/// (first number, answer) of each range, sorted; a range reaches to the next one.
fn ranges(table: &BTreeMap<u32, Answer>) -> Vec<(u32, Answer)> {
    let mut ranges: Vec<(u32, Answer)> = vec![(0, Answer::Give(EPERM))];
    let mut push = |from: u32, answer: Answer| match ranges.last_mut() {
        Some((start, last)) if *start == from => *last = answer,
        Some((_, last)) if *last == answer => {}
        _ => ranges.push((from, answer)),
    };
    for (number, answer) in table {
        push(*number, *answer);
        if !table.contains_key(&(number + 1)) {
            push(number + 1, Answer::Give(EPERM));
        }
    }
    push(X32, Answer::Give(KILL));
    ranges
}

fn search(ranges: &[(u32, Answer)]) -> Vec<sock_filter> {
    let (low, high) = match ranges {
        [] => return vec![statement(RET, EPERM)],
        [(_, answer)] => return leaf(*answer),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let (left, right) = (search(low), search(high));
    let mut code = match u8::try_from(left.len()) {
        Ok(over) => vec![jump(JGE, high[0].0, over, 0)],
        Err(_) => vec![jump(JGE, high[0].0, 0, 1), statement(JA, left.len() as u32)],
    };
    code.extend(left);
    code.extend(right);
    code
}

fn leaf(answer: Answer) -> Vec<sock_filter> {
    match answer {
        Answer::Give(value) => vec![statement(RET, value)],
        Answer::UnlessFlags(bits) => vec![
            statement(LD_W_ABS, ARG0_LOW),
            jump(JSET, bits, 0, 1),
            statement(RET, EPERM),
            statement(RET, ALLOW),
        ],
        Answer::UnlessFirst(values) => compare(ARG0_LOW, values, EPERM, ALLOW),
        Answer::UnlessSecond(values) => compare(ARG1_LOW, values, EPERM, ALLOW),
        Answer::OnlyFirst(values) => compare(ARG0_LOW, values, ALLOW, EPERM),
    }
}

/// The arguments compared here are 32-bit ones to the kernel, so the low half is all of them.
fn compare(argument: u32, values: &[u32], found: u32, otherwise: u32) -> Vec<sock_filter> {
    let mut code = vec![statement(LD_W_ABS, argument)];
    for (i, value) in values.iter().enumerate() {
        // Over the remaining comparisons and the answer for "none of them".
        let over = u8::try_from(values.len() - i).unwrap_or(u8::MAX);
        code.push(jump(JEQ, *value, over, 0));
    }
    code.extend([statement(RET, otherwise), statement(RET, found)]);
    code
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Every other value of the low half of an argument, as (mask, masked value), each value in exactly one. Runtimes take one of
/// several conditions on the same argument for enough, so "not this and not that" cannot be said in one rule; and they
/// compare all 64 bits, of which the kernel reads the low half.
fn all_but(refused: &[u32]) -> BTreeSet<(u32, u32)> {
    let beside = |value: u32, bit: u32| (u32::MAX << bit, (value ^ 1 << bit) & u32::MAX << bit);
    let all = refused.iter().flat_map(|v| (0..32).map(|bit| beside(*v, bit)));
    all.filter(|(mask, value)| refused.iter().all(|r| r & mask != *value)).collect()
}

/// The same rules in the words of the OCI runtime specification.
pub(crate) fn oci_profile() -> serde_json::Value {
    use serde_json::json;
    let special = ["clone", "clone3", "socket", "personality", "ioctl"];
    let names: Vec<&str> = calls::NAMES.iter().copied().filter(|n| !special.contains(n)).collect();
    let allow = |names: &[&str], args: serde_json::Value| json!({ "names": names, "action": "SCMP_ACT_ALLOW", "args": args });
    let mut rules = vec![
        allow(&names, json!([])),
        allow(
            &["clone"],
            json!([{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]),
        ),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
    ];
    for (name, index, refused) in [("socket", 0, &REFUSED_FAMILIES), ("ioctl", 1, &REFUSED_IOCTLS)] {
        rules.extend(all_but(refused).into_iter().map(|(mask, value)| {
            let arg = json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
            allow(&[name], json!([arg]))
        }));
    }
    for value in PERSONALITIES {
        rules.push(allow(&["personality"], json!([{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }])));
    }
    let architecture = if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture],
        "syscalls": rules,
    })
}
