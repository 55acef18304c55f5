//! DNS messages as a plain client writes and reads them (RFC 1035 section 4): not the product's own codec.

/// Record types that are asked for.
pub const SOA: u16 = 6;
pub const TXT: u16 = 16;

/// Octets before the question.
const HEADER: usize = 12;

/// What a response says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The strings of the first TXT record.
    Text(String),
    Serial(u32),
    /// The name or type does not exist.
    Nothing,
    /// A response code other than NOERROR and NXDOMAIN.
    Error(u8),
}

/// A query for one name and type.
pub fn query(id: u16, name: &str, rtype: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(label.len() as u8); // names of this crate: far below 64
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&rtype.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

/// Reads the response to a query; none if it is none, or is malformed. It repeats the question: the id alone is also that of one query in
/// 65,536 before, whose response may be late.
pub fn read(message: &[u8], query: &[u8]) -> Option<Answer> {
    let mut reader = Reader { message, at: 2 };
    let flags = reader.number()?;
    if message.get(..2)? != query.get(..2)? || flags & 0x8000 == 0 {
        return None;
    }
    let [questions, answers] = [reader.number()?, reader.number()?];
    let asked = query.get(HEADER..)?;
    let repeated = message.get(HEADER..HEADER + asked.len());
    let is_ours = repeated.is_some_and(|repeated| repeated.eq_ignore_ascii_case(asked));
    match (questions, (flags & 0x0f) as u8) {
        (0, code @ (1 | 2 | 4..)) => return Some(Answer::Error(code)),
        (1, _) if !is_ours => return None,
        (1, 0) => {}
        (1, 3) => return Some(Answer::Nothing),
        (1, code) => return Some(Answer::Error(code)),
        _ => return None,
    }
    reader.at = HEADER + asked.len();
    for _ in 0..answers {
        reader.skip_name()?;
        let rtype = reader.number()?;
        reader.at += 6;
        let length = usize::from(reader.number()?);
        let end = reader.at + length;
        match rtype {
            TXT => {
                let strings = super::api::character_strings(message.get(reader.at..end)?)?;
                return Some(Answer::Text(strings.concat()));
            }
            SOA => {
                reader.skip_name()?;
                reader.skip_name()?;
                let high = u32::from(reader.number()?);
                return Some(Answer::Serial(high << 16 | u32::from(reader.number()?)));
            }
            _ => reader.at = end,
        }
    }
    Some(Answer::Nothing)
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self) -> Option<u16> {
        let octets = self.message.get(self.at..)?.first_chunk()?;
        self.at += 2;
        Some(u16::from_be_bytes(*octets))
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            let length = *self.message.get(self.at)?;
            self.at += 1;
            match length {
                0 => return Some(()),
                0xc0.. => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += usize::from(length),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(code: u8, rtype: u16, data: &[u8]) -> Vec<u8> {
        let mut message = query(9, "a.test.", rtype);
        message[2] = 0x84;
        message[3] = code;
        message[7] = u8::from(!data.is_empty());
        if !data.is_empty() {
            message.extend_from_slice(&[0xc0, 12]);
            message.extend_from_slice(&rtype.to_be_bytes());
            message.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            message.extend_from_slice(data);
        }
        message
    }

    #[test]
    fn responses_are_read() {
        let text = response(0, TXT, &[2, b'4', b'2']);
        let (txt, soa_query) = (query(9, "a.test.", TXT), query(9, "a.test.", SOA));
        assert_eq!(read(&text, &txt), Some(Answer::Text("42".to_owned())));
        let other = query(8, "a.test.", TXT);
        assert_eq!(read(&text, &other), None, "another query's");
        assert_eq!(read(&txt, &txt), None, "a query");
        let soa = [&[0xc0, 12, 1, b'a', 0][..], &[0, 1, 0, 2], &[0; 16]].concat();
        assert_eq!(
            read(&response(0, SOA, &soa), &soa_query),
            Some(Answer::Serial(65538))
        );
        assert_eq!(read(&response(3, TXT, &[]), &txt), Some(Answer::Nothing));
        assert_eq!(read(&response(0, TXT, &[]), &txt), Some(Answer::Nothing));
        assert_eq!(read(&response(2, TXT, &[]), &txt), Some(Answer::Error(2)));
        for length in 0..text.len() {
            assert_ne!(
                read(&text[..length], &txt),
                Some(Answer::Text("42".to_owned()))
            );
        }
    }

    #[test]
    fn a_late_response_to_another_question_with_the_same_id_is_none() {
        let text = response(0, TXT, &[2, b'4', b'2']);
        for asked in [
            query(9, "b.test.", TXT),
            query(9, "a.test.", SOA),
            query(9, "a.test.a.", TXT),
        ] {
            assert_eq!(read(&text, &asked), None);
        }
        // Names are compared without regard to case (RFC 4343).
        let shouted = query(9, "A.TEST.", TXT);
        assert_eq!(read(&text, &shouted), Some(Answer::Text("42".to_owned())));
        // What could not be read is refused without its question.
        let refused = [0, 9, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&refused, &shouted), Some(Answer::Error(1)));
        let empty = [0, 9, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&empty, &shouted), None);
    }
}
