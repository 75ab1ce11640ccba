use super::*;

const MS: Duration = Duration::from_millis(1);

fn bounds() -> Bounds {
    Bounds { minimum: 3, maximum: 200, buffer_percent: 25, interval: Duration::from_secs(60) }
}

/// An application that serves `servers` requests at once, each for `service`; a crowd of `clients` asks again at once when it
/// was answered or, 10 ms later, refused. Returns the limits at the end of each second.
fn crowd(controller: &Arc<Controller>, clients: usize, servers: usize, service: Duration, seconds: u64) -> Vec<u32> {
    let mut free_at = vec![Duration::ZERO; servers];
    // When each client does something next, and the place it has if that is an end.
    let mut events: Vec<(Duration, Option<Place>)> = (0..clients).map(|n| (MS * n as u32, None)).collect();
    let mut limits = Vec::new();
    loop {
        let next = events.iter_mut().min_by_key(|(at, _)| *at).unwrap();
        let now = next.0;
        while now >= Duration::from_secs(limits.len() as u64 + 1) {
            limits.push(controller.limit());
        }
        if limits.len() as u64 >= seconds {
            return limits;
        }
        if let Some(place) = next.1.take() {
            place.done(now);
        }
        match controller.enter(now) {
            Some(place) => {
                let server = free_at.iter_mut().min().unwrap();
                *server = now.max(*server) + service;
                *next = (*server, Some(place));
            }
            None => next.0 = now + 10 * MS,
        }
    }
}

#[test]
fn a_crowd_is_held_near_what_the_application_can_serve_at_once() {
    let controller = Arc::new(Controller::new(bounds()));
    let limits = crowd(&controller, 150, 10, 20 * MS, 40);
    for limit in &limits[20..] {
        assert!((8..=40).contains(limit), "ten are served at once: {limits:?}");
    }
    assert!(controller.open() <= 40);
}

#[test]
fn few_requests_are_never_limited_however_slow() {
    let controller = Arc::new(Controller::new(bounds()));
    let limits = crowd(&controller, 3, 3, 300 * MS, 30);
    assert!(limits.iter().all(|limit| *limit >= 100), "{limits:?}");
}

#[test]
fn an_application_that_serves_all_at_once_gets_all() {
    let controller = Arc::new(Controller::new(bounds()));
    let limits = crowd(&controller, 100, 100, 20 * MS, 20);
    assert!(limits[5..].iter().all(|limit| *limit >= 100), "{limits:?}");
}

#[test]
fn an_application_that_becomes_slower_for_good_is_believed_after_a_measurement() {
    let controller = Arc::new(Controller::new(Bounds { interval: Duration::from_secs(5), ..bounds() }));
    crowd(&controller, 50, 50, 5 * MS, 5);
    let slower = crowd(&controller, 50, 50, 40 * MS, 30);
    assert!(*slower.last().unwrap() >= 50, "{slower:?}");
}

#[test]
fn a_request_that_was_given_up_makes_room_and_says_nothing() {
    let controller = Arc::new(Controller::new(Bounds { maximum: 3, ..bounds() }));
    let places: Vec<_> = (0..3).map(|_| controller.enter(MS).unwrap()).collect();
    assert!(controller.enter(MS).is_none());
    drop(places);
    assert_eq!((controller.open(), controller.latencies.count()), (0, 0));
    assert!(controller.enter(MS).is_some());
}
