//! Results to a DICOMweb server: STOW-RS (PS3.18 section 10.5), one instance in each request, so that each has its answer.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Caller, Verdict,
    dicom::in_words,
    policy::{Fault, http_policy, status_policy},
    way::{Answer, Carrier},
    web::{FileBody, Reply, RequestBody, Tokens, WebConnection, WebTarget, whole},
};
use crate::db::delivery::DueDelivery;

/// DICOM JSON Model (PS3.18 annex F).
const DICOM_JSON: &str = "application/dicom+json";
const AGENT: &str = concat!("hilum/", env!("CARGO_PKG_VERSION"));
/// The longest pause that a server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);
/// A study that nobody has: a search for it costs little and shows nothing.
const NO_STUDY: &str = "1.2.3.4.5.6.7.8.9.0";

/// A connection with a DICOMweb server.
pub(super) struct StowWay {
    target: WebTarget,
    connection: WebConnection,
}

impl StowWay {
    pub(super) async fn open(caller: &Caller, target: &WebTarget) -> Result<Self, String> {
        let connection = WebConnection::open(caller, &target.url).await?;
        Ok(Self { target: target.clone(), connection })
    }

    /// Searches for a study that is not there. Servers that offer no search answer, too.
    pub(super) async fn probe(caller: &Caller, tokens: &Tokens, target: &WebTarget) -> Result<String, String> {
        let authorization = tokens.authorization(caller, target).await?;
        let mut connection = WebConnection::open(caller, &target.url).await?;
        let path = format!("{}?StudyInstanceUID={NO_STUDY}&limit=1", studies(target));
        let mut request = Request::get(path).header(ACCEPT, DICOM_JSON).header(USER_AGENT, AGENT);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(whole("")).map_err(|error| error.to_string())?;
        let status = connection.exchange(request, 0).await?.status.as_u16();
        let words = http_words(status);
        match status {
            401 => {
                tokens.forget(target).await;
                Err(words)
            }
            300..=399 | 403 | 407 | 429 | 500 | 502..=599 => Err(words),
            _ => Ok(format!("the web server answers with HTTP {status}")),
        }
    }

    pub(super) async fn send(&mut self, carrier: &Carrier, delivery: &DueDelivery) -> Answer {
        let answer = self.send_once(carrier, delivery).await;
        // A token may end before its time.
        if answer.http_status() == Some(401) && carrier.tokens.forget(&self.target).await {
            return self.send_once(carrier, delivery).await.0;
        }
        answer.0
    }

    async fn send_once(&mut self, carrier: &Carrier, delivery: &DueDelivery) -> WebAnswer {
        let file = match carrier.open(delivery).await {
            Ok(file) => file,
            Err(answer) => return WebAnswer(answer, None),
        };
        let authorization = match carrier.tokens.authorization(&carrier.caller, &self.target).await {
            Ok(authorization) => authorization,
            Err(words) => return WebAnswer(Answer::broken(words), None),
        };
        if self.connection.is_closed() {
            match WebConnection::open(&carrier.caller, &self.target.url).await {
                Ok(connection) => self.connection = connection,
                Err(words) => return WebAnswer(Answer::broken(words), None),
            }
        }
        let boundary = format!("hilum-{}", Uuid::new_v4().simple());
        let head = format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n");
        let body = FileBody::new(head, file.file, file.length, format!("\r\n--{boundary}--\r\n"));
        let length = body.length();
        let mut request = Request::post(studies(&self.target))
            .header(ACCEPT, DICOM_JSON)
            .header(USER_AGENT, AGENT)
            .header(CONTENT_TYPE, format!("multipart/related; type=\"application/dicom\"; boundary={boundary}"))
            .header(CONTENT_LENGTH, length);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let body: RequestBody = body.boxed_unsync();
        let request = match request.body(body) {
            Ok(request) => request,
            Err(error) => return WebAnswer(Answer::new(Verdict::Dead, error.to_string()), None),
        };
        match self.connection.exchange(request, length).await {
            Ok(reply) => {
                let Reply { status, headers, body } = &reply;
                WebAnswer(judge(*status, headers, body, &delivery.sop_instance_uid), Some(*status))
            }
            Err(words) => WebAnswer(Answer::broken(words), None),
        }
    }
}

struct WebAnswer(Answer, Option<StatusCode>);

impl WebAnswer {
    fn http_status(&self) -> Option<u16> {
        self.1.map(|status| status.as_u16())
    }
}

fn studies(target: &WebTarget) -> String {
    format!("{}/studies", target.url.path().trim_end_matches('/'))
}

fn http_words(status: u16) -> String {
    let policy = http_policy(status);
    if policy.verdict == Verdict::Delivered {
        format!("HTTP {status} ({})", policy.words)
    } else {
        format!("HTTP {status} ({}); {}", policy.words, policy.remedy)
    }
}

/// What an answer says of one instance: by its entry in the Store Instances Response (PS3.18 section 10.5.3.3 and annex I),
/// else by the HTTP status.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8], sop_instance_uid: &str) -> Answer {
    let code = status.as_u16();
    let reason = match code {
        200 | 202 | 400 | 409 => reason(body, sop_instance_uid),
        _ => None,
    };
    if let Some(reason) = reason {
        return Answer {
            status: Some(reason),
            ..Answer::new(status_policy(reason).verdict, format!("HTTP {code}: {}", in_words(reason)))
        };
    }
    let policy = http_policy(code);
    let comment = String::from_utf8_lossy(body).chars().take(500).collect::<String>();
    Answer {
        broken: policy.verdict == Verdict::Retry && policy.fault == Fault::Destination,
        peer_comment: (policy.verdict != Verdict::Delivered && !comment.trim().is_empty()).then_some(comment),
        retry_after: headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER)),
        ..Answer::new(policy.verdict, http_words(code))
    }
}

/// The status of an instance in an answer: its Failure Reason (0008,1197) in the Failed SOP Sequence (0008,1198), or its
/// Warning Reason (0008,1196), or success, in the Referenced SOP Sequence (0008,1199).
fn reason(body: &[u8], sop_instance_uid: &str) -> Option<u16> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let answers = match &answer {
        Value::Array(answers) => answers.as_slice(),
        one => std::slice::from_ref(one),
    };
    let entry = |sequence: &str| {
        answers
            .iter()
            .filter_map(|answer| answer.get(sequence)?.get("Value")?.as_array())
            .flatten()
            .find(|item| first(item, "00081155").and_then(Value::as_str) == Some(sop_instance_uid))
    };
    let number =
        |item: &Value, tag: &str| first(item, tag).and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    if let Some(failed) = entry("00081198") {
        // A failure without a reason is a failure all the same: processing failure.
        return Some(number(failed, "00081197").unwrap_or(0x0110));
    }
    entry("00081199").map(|stored| number(stored, "00081196").unwrap_or(0x0000))
}

fn first<'a>(item: &'a Value, tag: &str) -> Option<&'a Value> {
    item.get(tag)?.get("Value")?.get(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        judge(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.to_string().as_bytes(), "2.25.1")
    }

    fn item(uid: &str, tag: &str, reason: Option<u16>) -> Value {
        let mut item = json!({ "00081155": { "vr": "UI", "Value": [uid] } });
        if let Some(reason) = reason {
            item[tag] = json!({ "vr": "US", "Value": [reason] });
        }
        item
    }

    #[rstest::rstest]
    #[case(200, Some(0xA700), Verdict::Retry)]
    #[case(202, Some(0x0111), Verdict::Delivered)]
    #[case(409, Some(0x0122), Verdict::NextForm)]
    #[case(409, Some(0xC122), Verdict::Dead)]
    #[case(400, None, Verdict::Retry)]
    fn failures_are_judged_by_their_reason(
        #[case] status: u16,
        #[case] reason: Option<u16>,
        #[case] expected: Verdict,
    ) {
        let others = [item("2.25.9", "00081197", Some(0x0000)), item("2.25.1", "00081197", reason)];
        let answer = answer(status, &json!({ "00081198": { "vr": "SQ", "Value": others } }));
        assert_eq!((answer.verdict, answer.status), (expected, Some(reason.unwrap_or(0x0110))), "{}", answer.words);
        assert!(!answer.broken);
    }

    #[test]
    fn what_is_stored_is_delivered_with_its_warning() {
        let stored = |reason| json!([{ "00081199": { "vr": "SQ", "Value": [item("2.25.1", "00081196", reason)] } }]);
        assert_eq!(answer(200, &stored(None)).status, Some(0));
        let coerced = answer(202, &stored(Some(0xB000)));
        assert_eq!((coerced.verdict, coerced.status), (Verdict::Delivered, Some(0xB000)));
    }

    #[test]
    fn without_an_entry_the_http_status_decides() {
        let foreign = json!({ "00081198": { "vr": "SQ", "Value": [item("2.25.9", "00081197", Some(0xA700))] } });
        assert_eq!(answer(200, &foreign).verdict, Verdict::Delivered);
        assert_eq!(answer(202, &json!({})).verdict, Verdict::Retry);
        let unknown = answer(401, &json!({}));
        assert!(unknown.broken && unknown.words.contains("check `authentication`"), "{}", unknown.words);
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        let busy = judge(StatusCode::SERVICE_UNAVAILABLE, &headers, b"patient DOE is unknown", "2.25.1");
        assert_eq!((busy.verdict, busy.retry_after), (Verdict::Retry, Some(Duration::from_secs(7))));
        assert!(!busy.words.contains("DOE") && busy.peer_comment.is_some_and(|comment| comment.contains("DOE")));
        headers.insert(RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT".parse().unwrap());
        assert_eq!(judge(StatusCode::TOO_MANY_REQUESTS, &headers, b"", "2.25.1").retry_after, None);
    }
}
