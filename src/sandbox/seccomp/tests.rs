//! The compiled program against the table it was compiled from, by a small interpreter.

use super::*;
use proptest::prelude::*;

struct Data {
    nr: u32,
    arch: u32,
    args: [u32; 2],
}

fn run(program: &[sock_filter], data: &Data) -> u32 {
    let (mut at, mut a) = (0, 0);
    for _ in 0..10_000 {
        let i = program[at];
        at += 1;
        let over = |yes| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LD_W_ABS => {
                a = match i.k {
                    NR => data.nr,
                    ARCH => data.arch,
                    ARG0_LOW => data.args[0],
                    ARG1_LOW => data.args[1],
                    other => panic!("no such offset: {other}"),
                }
            }
            JEQ => at += over(a == i.k),
            JGE => at += over(a >= i.k),
            JSET => at += over(a & i.k != 0),
            JA => at += i.k as usize,
            RET => return i.k,
            other => panic!("no such instruction: {other:#x}"),
        }
    }
    panic!("the program does not end");
}

fn expected(data: &Data) -> u32 {
    if data.arch != NATIVE_ARCH || data.nr >= X32 {
        return KILL;
    }
    let pick = |refused| if refused { EPERM } else { ALLOW };
    match answers().get(&data.nr) {
        None => EPERM,
        Some(Answer::Give(value)) => *value,
        Some(Answer::UnlessFlags(bits)) => pick(data.args[0] & bits != 0),
        Some(Answer::UnlessFirst(values)) => pick(values.contains(&data.args[0])),
        Some(Answer::UnlessSecond(values)) => pick(values.contains(&data.args[1])),
        Some(Answer::OnlyFirst(values)) => pick(!values.contains(&data.args[0])),
    }
}

fn call(nr: libc::c_long, first: u32, second: u32) -> u32 {
    run(&program(), &Data { nr: u32::try_from(nr).unwrap(), arch: NATIVE_ARCH, args: [first, second] })
}

#[test]
fn the_program_says_what_the_table_says_for_every_number() {
    let program = program();
    assert!(program.len() < 200, "{} instructions: the ranges are gone", program.len());
    for nr in (0..1200).chain([X32 - 1, X32, X32 + 1, u32::MAX]) {
        for args in [[0, 0], [38, 0x5412], [0x2000_0000, 0x541c], [u32::MAX, u32::MAX]] {
            let data = Data { nr, arch: NATIVE_ARCH, args };
            assert_eq!(run(&program, &data), expected(&data), "number {nr}, arguments {args:x?}");
        }
    }
}

#[test]
fn what_must_stay_out_is_out() {
    let forbidden = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_kexec_load,
        libc::SYS_syslog,
        libc::SYS_acct,
        libc::SYS_swapon,
        libc::SYS_quotactl,
        libc::SYS_move_pages,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_reboot,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_sethostname,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
    ];
    for nr in forbidden {
        assert_eq!(call(nr, 0, 0), EPERM, "number {nr}");
    }
    assert_eq!(call(libc::SYS_clone3, 0, 0), ENOSYS);
    assert_eq!(call(libc::SYS_socket, 38, 0), EPERM);
    assert_eq!(call(libc::SYS_socket, 40, 0), EPERM);
    assert_eq!(call(libc::SYS_socket, 2, 0), ALLOW);
    assert_eq!(call(libc::SYS_clone, 0x1000_0000 | 17, 0), EPERM);
    assert_eq!(call(libc::SYS_clone, 17, 0), ALLOW);
    assert_eq!(call(libc::SYS_personality, 0x0040_0000, 0), EPERM);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_call_of_any_architecture(nr: u32, native: bool, arch: u32, args: [u32; 2]) {
        let data = Data { nr, arch: if native { NATIVE_ARCH } else { arch }, args };
        prop_assert_eq!(run(&program(), &data), expected(&data));
    }

    /// Long lists make jumps that do not fit eight bits.
    #[test]
    fn any_table(numbers in proptest::collection::btree_set(0u32..4000, 0..900), probe in 0u32..4100) {
        let table: BTreeMap<u32, Answer> = numbers.iter().map(|n| (*n, Answer::Give(ALLOW))).collect();
        let mut code = vec![statement(LD_W_ABS, NR)];
        code.extend(search(&ranges(&table)));
        let data = Data { nr: probe, arch: NATIVE_ARCH, args: [0, 0] };
        prop_assert_eq!(run(&code, &data), if numbers.contains(&probe) { ALLOW } else { EPERM });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn all_but_a_few_values_are_each_in_one_rule(value: u32, near in 0u32..64) {
        for refused in [REFUSED_FAMILIES, REFUSED_IOCTLS] {
            for value in [value, near, refused[0] ^ near, refused[1], u32::MAX] {
                let rules = all_but(&refused).into_iter().filter(|(mask, masked)| value & mask == *masked).count();
                prop_assert_eq!(rules, usize::from(!refused.contains(&value)), "{}", value);
            }
        }
    }
}
