use std::time::{Duration, Instant};

use super::*;

#[test]
fn the_answer_comes_before_the_caller_gives_up() {
    for (text, expected) in [
        ("1S", Some(Duration::from_secs(1))),
        ("250m", Some(Duration::from_millis(250))),
        ("99999999u", Some(Duration::from_micros(99_999_999))),
        ("2M", Some(Duration::from_secs(120))),
        ("", None),
        ("S", None),
        ("-1S", None),
        ("1x", None),
        ("123456789S", None),
    ] {
        assert_eq!(grpc_timeout(text), expected, "{text:?}");
    }
    let mut request = tonic::Request::new(());
    request.set_timeout(Duration::from_secs(10));
    let left = deadline_of(&request) - Instant::now();
    assert!(left <= Duration::from_secs(9) && left > Duration::from_secs(8));
    let left = deadline_of(&tonic::Request::new(())) - Instant::now();
    assert!(left <= DEFAULT_PATIENCE && left > DEFAULT_PATIENCE / 2);
}

#[test]
fn our_own_descriptors_can_be_reflected() {
    for builder in [(); 2].map(|()| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    }) {
        assert!(builder.build_v1().is_ok());
    }
}
