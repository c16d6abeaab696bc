//! Site files.

use std::fmt::Write as _;

/// A site file in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Site {
    text: String,
    routes: u32,
}

impl Site {
    /// One local AE title.
    pub(crate) fn new(local_ae_title: &str) -> Self {
        let mut site = Self::default();
        let _ = writeln!(site.text, "[[local_ae]]\nae_title = \"{local_ae_title}\"\n");
        site
    }

    /// The usual one: `HILUM`, the sender `SCANNER`, the untrained bundle after a quiet second, results to PACS.
    pub(crate) fn usual(pacs_port: u16) -> Self {
        Self::new("HILUM").sender("SCANNER").pacs("pacs", "PACS", pacs_port).route("cxr-untrained", 1, &["pacs"])
    }

    /// A further local AE title.
    pub(crate) fn local_ae(mut self, ae_title: &str) -> Self {
        let _ = writeln!(self.text, "[[local_ae]]\nae_title = \"{ae_title}\"\n");
        self
    }

    /// Somebody on this machine who may send.
    pub(crate) fn sender(self, ae_title: &str) -> Self {
        self.sender_at(ae_title, "127.0.0.1")
    }

    /// Somebody who may send from `host`.
    pub(crate) fn sender_at(mut self, ae_title: &str, host: &str) -> Self {
        let name = ae_title.to_lowercase();
        let _ = writeln!(
            self.text,
            "[[peer]]\nname = \"{name}\"\nae_title = \"{ae_title}\"\nhost = \"{host}\"\nmay_store = true\n"
        );
        self
    }

    /// Somebody on this machine who may send, with further keys.
    pub(crate) fn sender_with(mut self, ae_title: &str, keys: &str) -> Self {
        let name = ae_title.to_lowercase();
        let _ = writeln!(
            self.text,
            "[[peer]]\nname = \"{name}\"\nae_title = \"{ae_title}\"\nhost = \"127.0.0.1\"\nmay_store = true\n{keys}\n"
        );
        self
    }

    /// Somebody on this machine who may send and can be called.
    pub(crate) fn partner(mut self, name: &str, ae_title: &str, port: u16) -> Self {
        let _ = writeln!(
            self.text,
            "[[peer]]\nname = \"{name}\"\nae_title = \"{ae_title}\"\nhost = \"127.0.0.1\"\nport = {port}\n\
             may_store = true\n"
        );
        self
    }

    /// A destination on this machine.
    pub(crate) fn pacs(self, name: &str, ae_title: &str, port: u16) -> Self {
        self.destination(name, ae_title, port, false)
    }

    /// A destination on this machine that gets reports of studies that were not analysed, too.
    pub(crate) fn pacs_for_everything(self, name: &str, ae_title: &str, port: u16) -> Self {
        self.destination(name, ae_title, port, true)
    }

    fn destination(mut self, name: &str, ae_title: &str, port: u16, send_not_analysed: bool) -> Self {
        let _ = writeln!(
            self.text,
            "[[peer]]\nname = \"{name}\"\nae_title = \"{ae_title}\"\nhost = \"127.0.0.1\"\nport = {port}\n\n\
             [[destination]]\nname = \"{name}\"\nkind = \"dicom\"\npeer = \"{name}\"\n\
             calling_ae_title = \"HILUM\"\nsend_not_analysed = {send_not_analysed}\n"
        );
        self
    }

    /// A route for radiographs that were sent to `HILUM`.
    pub(crate) fn route(self, bundle: &str, quiet_seconds: u32, destinations: &[&str]) -> Self {
        self.route_with("HILUM", bundle, &format!("quiet_seconds = {quiet_seconds}\ndestinations = {destinations:?}"))
    }

    /// A route for radiographs that were sent to `called`, with further keys.
    pub(crate) fn route_with(mut self, called: &str, bundle: &str, keys: &str) -> Self {
        self.routes += 10;
        let order = self.routes;
        let _ = writeln!(
            self.text,
            "[[route]]\nname = \"route-{order}\"\norder = {order}\ncalled_ae_title = \"{called}\"\n\
             modalities = [\"CR\", \"DX\"]\npipeline = \"chest_radiograph\"\nbundle = \"{bundle}\"\n\
             max_wait_seconds = 600\n{keys}\n"
        );
        self
    }

    /// Entries or keys as they stand in the file.
    pub(crate) fn with(mut self, text: &str) -> Self {
        let _ = writeln!(self.text, "{text}\n");
        self
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}
