//! A request body read twice: by who gets the request, and by who gets a copy of it.
//!
//! The copy never holds up the request: what it has not read yet is kept up to a limit, beyond which the copy ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::body::{KeptFrame, MAX_REPLAY_BYTES};
use super::error::BoxError;

/// Where frames are written; dropped before [`Feed::end`], the copy breaks off.
pub struct Feed(Rc<RefCell<Queue>>);

/// The copy's body.
pub struct Tap {
    queue: Rc<RefCell<Queue>>,
    size_hint: SizeHint,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<KeptFrame>,
    /// Of the frames.
    bytes: usize,
    end: Option<End>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// Both ends of a copy of a body of this size.
pub fn tee(size_hint: SizeHint) -> (Feed, Tap) {
    let queue = Rc::new(RefCell::new(Queue::default()));
    (Feed(queue.clone()), Tap { queue, size_hint })
}

impl Feed {
    /// One more frame.
    pub fn push(&self, frame: &Frame<Bytes>) {
        let queue = &mut *self.0.borrow_mut();
        // Nobody reads it any more.
        if queue.end.is_some() || Rc::strong_count(&self.0) == 1 {
            return;
        }
        let kept = KeptFrame::of(frame);
        queue.bytes += kept.as_ref().map_or(0, KeptFrame::bytes);
        queue.frames.extend(kept);
        if queue.bytes > MAX_REPLAY_BYTES {
            queue.finish(End::Broken);
        }
        queue.wake();
    }

    /// That was all.
    pub fn end(self) {
        self.0.borrow_mut().finish(End::Whole);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.borrow_mut().finish(End::Broken);
    }
}

impl Queue {
    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            if end == End::Broken {
                self.frames.clear();
            }
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl http_body::Body for Tap {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let queue = &mut *self.queue.borrow_mut();
        if let Some(frame) = queue.frames.pop_front() {
            queue.bytes -= frame.bytes();
            return Poll::Ready(Some(Ok(frame.frame())));
        }
        match queue.end {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::Broken) => Poll::Ready(Some(Err("the request it copies broke off, or was too fast".into()))),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let queue = self.queue.borrow();
        queue.frames.is_empty() && queue.end == Some(End::Whole)
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn collected(tap: Tap) -> Result<Bytes, BoxError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(tap.collect()).map(|body| body.to_bytes())
    }

    fn data(len: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![b'x'; len]))
    }

    #[test]
    fn the_copy_is_the_whole_body_or_breaks_off() {
        let (feed, tap) = tee(SizeHint::default());
        feed.push(&data(2));
        feed.push(&data(3));
        feed.end();
        assert_eq!(collected(tap).unwrap(), "xxxxx");

        let (feed, tap) = tee(SizeHint::default());
        feed.push(&data(2));
        drop(feed);
        assert!(collected(tap).is_err());
    }

    #[test]
    fn a_copy_that_is_not_read_holds_no_more_than_its_limit() {
        let (feed, tap) = tee(SizeHint::default());
        feed.push(&data(MAX_REPLAY_BYTES));
        assert_eq!(feed.0.borrow().frames.len(), 1);
        feed.push(&data(1));
        assert!(feed.0.borrow().frames.is_empty());
        feed.end();
        assert!(collected(tap).is_err());
    }
}
