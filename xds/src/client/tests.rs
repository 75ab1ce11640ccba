//! What of the client needs no server; with one: `server/tests.rs`.

use super::*;

#[test]
fn the_bound_of_the_back_off_doubles_up_to_its_maximum() {
    let bounds: Vec<u128> = (1..=8).map(|failures| back_off(failures, 1.0).as_millis()).collect();

    assert_eq!(bounds, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!(back_off(u32::MAX, 1.0), BACK_OFF_MAX);
    assert_eq!(back_off(5, 0.0), Duration::ZERO);
    assert_eq!(back_off(5, 0.5), Duration::from_millis(1600));
}

fn never_connects() -> (Subscriptions, impl Future<Output = ()> + Send + 'static) {
    let connect = || async { Err::<Channel, _>("no route") };
    new(Node::default(), connect, |_: &Update| Vec::new())
}

#[tokio::test]
async fn nothing_is_connected_to_before_something_is_wanted() {
    let (subscriptions, task) = never_connects();
    tokio::spawn(task);
    let mut connection = subscriptions.connection();

    assert_eq!(*connection.borrow(), Connection::Idle);
    subscriptions.subscribe(Kind::Listener, "inbound").unwrap();
    let failed = connection.wait_for(|connection| matches!(connection, Connection::Waiting { .. })).await.unwrap();

    assert_eq!(*failed, Connection::Waiting { failures: 1, error: "no route".into() });
}

#[tokio::test]
async fn the_task_ends_when_the_last_door_to_it_is_dropped() {
    let (subscriptions, task) = never_connects();
    let task = tokio::spawn(task);
    subscriptions.subscribe(Kind::Listener, "inbound").unwrap();

    drop(subscriptions);

    task.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_run_takes_a_bounded_number_of_commands() {
    let (subscriptions, task) = never_connects();
    for number in 0..MAX_COMMANDS {
        subscriptions.subscribe(Kind::Listener, number.to_string()).unwrap();
    }

    assert_eq!(subscriptions.subscribe(Kind::Listener, "one more"), Err(Error::Busy));
    drop(task);
    assert_eq!(subscriptions.subscribe(Kind::Listener, "one more"), Err(Error::Ended));
}
