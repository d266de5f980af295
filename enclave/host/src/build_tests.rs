use std::os::unix::fs::PermissionsExt;

use super::*;

/// The smallest file that is a program of one segment of this type.
fn program(segment: u32) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64..68].copy_from_slice(&segment.to_le_bytes());
    elf
}

fn module_file() -> Vec<u8> {
    let mut elf = program(1);
    elf[16] = 1;
    elf
}

fn kernel_file() -> Vec<u8> {
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

/// A folder with all that a build needs, and the request for it.
fn request() -> (tempfile::TempDir, BuildRequest) {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let boot = Boot {
        kernel: put("bzImage", &kernel_file()),
        command_line: COMMAND_LINE.to_owned(),
        init: put("init", &program(1)),
        nsm: Some(put("nsm.ko", &module_file())),
        modules: vec![put("b.ko", &module_file()), put("a.ko", &module_file())],
        parent_cid: Some(2),
    };
    put("cmdline", b"reboot=k\n");
    let request = BuildRequest {
        worker: put("worker", &program(1)),
        configuration: put("worker.yaml", b"owner_keys: []\n"),
        output: folder.path().join("worker.eif"),
        tier: BuildTier::Nitro(boot),
    };
    (folder, request)
}

fn boot(request: &mut BuildRequest) -> &mut Boot {
    match &mut request.tier {
        BuildTier::Nitro(boot) => boot,
        BuildTier::Software => panic!("not this one"),
    }
}

#[test]
fn the_same_input_in_another_folder_is_the_same_image() {
    let ((_one, first), (_other, second)) = (request(), request());
    let (built, again) = (build(&first).unwrap(), build(&second).unwrap());
    assert_eq!(built.measurements, again.measurements);
    assert_eq!(fs::read(&built.path).unwrap(), fs::read(&again.path).unwrap());
    assert_eq!(fs::metadata(&built.path).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_boots_and_what_runs_are_measured_apart() {
    let (_folder, mut request) = request();
    let original = build(&request).unwrap().measurements;
    fs::write(&request.configuration, "owner_keys: [x]\n").unwrap();
    let configured = build(&request).unwrap().measurements;
    assert!(configured.image != original.image && configured.application != original.application);
    assert_eq!(configured.kernel, original.kernel);
    boot(&mut request).modules.reverse();
    let reordered = build(&request).unwrap().measurements;
    assert!(reordered.image != configured.image && reordered.kernel != configured.kernel);
    assert_eq!(reordered.application, configured.application);
    boot(&mut request).parent_cid = None;
    assert_ne!(build(&request).unwrap().measurements.kernel, reordered.kernel);
}

#[test]
fn both_ramdisks_have_the_layout_that_inits_read() {
    let (_folder, request) = request();
    let image = fs::read(build(&request).unwrap().path).unwrap();
    let found = |path: &str| {
        let path = [path.as_bytes(), &[0]].concat();
        image.windows(path.len()).any(|window| window == path)
    };
    for path in [
        "init",
        "nsm.ko",
        "modules/000-b.ko",
        "modules/001-a.ko",
        "parent-cid",
        "cmd",
        "env",
        "rootfs/worker",
        "rootfs/configuration.yaml",
    ] {
        assert!(found(path), "{path}");
    }
    for folder in [
        "dev",
        "rootfs/dev",
        "rootfs/proc",
        "rootfs/run",
        "rootfs/sys",
        "rootfs/tmp",
    ] {
        assert!(found(folder), "{folder}");
    }
}

#[test]
fn the_software_tier_is_the_program_with_its_configuration_and_one_measurement() {
    let (_folder, mut request) = request();
    request.tier = BuildTier::Software;
    let built = build(&request).unwrap();
    let bytes = fs::read(&built.path).unwrap();
    assert!(bytes.starts_with(&program(1)));
    assert_eq!(image::config_of(&bytes).unwrap(), b"owner_keys: []\n");
    let json = serde_json::to_value(&built.measurements).unwrap();
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["image"]);
    // A program that has one already would run under the old.
    request.worker = built.path;
    assert!(matches!(build(&request), Err(BuildError::Image { .. })));
}

#[test]
fn blobs_of_aws_are_found_by_their_names() {
    let (folder, request) = request();
    let boot = Boot::from_blobs(folder.path()).unwrap();
    assert_eq!(boot.command_line, "reboot=k");
    assert_eq!(boot.nsm, Some(folder.path().join("nsm.ko")));
    build(&BuildRequest {
        tier: BuildTier::Nitro(boot),
        ..request
    })
    .unwrap();
    fs::remove_file(folder.path().join("nsm.ko")).unwrap();
    assert_eq!(Boot::from_blobs(folder.path()).unwrap().nsm, None);
    fs::remove_file(folder.path().join("bzImage")).unwrap();
    let error = Boot::from_blobs(folder.path()).unwrap_err();
    assert!(matches!(error, BuildError::NoKernel { .. }) && error.help().is_some());
}

#[test]
fn a_program_that_needs_a_loader_is_refused_and_nothing_is_written() {
    for init in [false, true] {
        let (_folder, mut request) = request();
        let path = if init {
            boot(&mut request).init.clone()
        } else {
            request.worker.clone()
        };
        fs::write(&path, program(3)).unwrap();
        let error = build(&request).unwrap_err();
        assert!(
            matches!(&error, BuildError::NotStatic { path: named } if *named == path),
            "{error}"
        );
        assert!(!request.output.exists());
    }
    // This test itself.
    let (_folder, mut request) = request();
    request.worker = std::env::current_exe().unwrap();
    assert!(matches!(build(&request), Err(BuildError::NotStatic { .. })));
}

#[test]
fn what_is_no_program_no_kernel_and_no_module_is_refused() {
    let (_folder, original) = request();
    let mut arm = program(1);
    arm[18] = 183;
    let mut far = program(1);
    far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    for file in [&b""[..], b"#!/bin/sh", &program(1)[..40], &module_file(), &far] {
        fs::write(&original.worker, file).unwrap();
        assert!(
            matches!(build(&original), Err(BuildError::NoProgram { .. })),
            "{}",
            file.len()
        );
    }
    // A kernel of x86-64, a worker of Arm.
    fs::write(&original.worker, &arm).unwrap();
    assert!(matches!(build(&original), Err(BuildError::NotAKernel { .. })));
    fs::write(&original.worker, program(1)).unwrap();

    let mut request = original.clone();
    fs::write(&boot(&mut request).init, &arm).unwrap();
    assert!(matches!(build(&request), Err(BuildError::OtherArchitecture { .. })));
    fs::write(&boot(&mut request).init, program(1)).unwrap();

    fs::write(&boot(&mut request).modules[0], b"\xfd7zXZ\0").unwrap();
    let error = build(&request).unwrap_err();
    assert!(matches!(error, BuildError::NoModule { .. }) && error.help().is_some());
    boot(&mut request).modules.clear();

    for command_line in ["a\0b", "a\nb", "\u{e4}"] {
        boot(&mut request).command_line = command_line.to_owned();
        assert!(matches!(build(&request), Err(BuildError::CommandLine { .. })));
    }
    boot(&mut request).command_line.clear();

    fs::write(&request.configuration, vec![b'#'; image::MAX_CONFIGURATION + 1]).unwrap();
    assert!(matches!(build(&request), Err(BuildError::TooLarge { .. })));
    request.configuration = "/nonexistent/worker.yaml".into();
    let error = build(&request).unwrap_err();
    assert!(
        error.is_io()
            && error
                .to_string()
                .starts_with("/nonexistent/worker.yaml cannot be read: "),
        "{error}"
    );
}
